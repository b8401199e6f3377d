"""GPT-2's parameters in files: FlaxGPT2's `flax_model.msgpack` and `model.safetensors` <-> GPT2."""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from gpt2_jax import json_files, lora
from gpt2_jax.errors import InputError, shown
from gpt2_jax.model import GPT2, model_of_shapes, parameter_name, unstack
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tensor_files import TYPES, Tensor, read_msgpack, read_safetensors, write_msgpack, write_safetensors
from gpt2_jax.weight_layout import file_shapes, name_in_file, plain_name, to_file, to_model

Format = Literal["safetensors", "flax"]
FILES: dict[Format, str] = {"safetensors": "model.safetensors", "flax": "flax_model.msgpack"}
READERS = {".safetensors": read_safetensors, ".msgpack": read_msgpack}
LONGEST_FILE = 255  # bytes of a name, on the file systems of Linux
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # of old files: the causal mask, no parameters
REFUSED = {
    ".bin": "a pickle, which can run any code",
    ".pt": "a pickle, which can run any code",
    ".pth": "a pickle, which can run any code",
    ".pkl": "a pickle, which can run any code",
    ".ckpt": "a pickle or a TensorFlow checkpoint",
    ".h5": "a TensorFlow file",
    ".gguf": "a file of llama.cpp",
}
WAY_OUT = (
    'with torch and transformers elsewhere, GPT2LMHeadModel.from_pretrained(folder).save_pretrained("safe") writes '
    "model.safetensors; of nanoGPT's ckpt.pt, load the state into a GPT2LMHeadModel first (its matrices transposed)"
)


def find(path: Path) -> list[Path]:
    """The weight files meant by a path: itself, or those of a folder, safetensors before msgpack.

    Raises:
      InputError: none there, or only such as are not opened.
    """
    if path.is_file():
        if path.suffix not in READERS:
            raise _refusal(path)
        return [path]
    if not path.is_dir():
        raise InputError(f"{path} is no file and no folder; give a folder with GPT-2's weights")
    for single in FILES.values():
        if (path / single).is_file():
            return [path / single]
        if (path / f"{single}.index.json").is_file():
            return _shards(path / f"{single}.index.json")
    try:
        others = sorted(path.iterdir())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    for other in others:
        if other.suffix in REFUSED:
            raise _refusal(other)
    raise InputError(f"{path} has no {' and no '.join(FILES.values())}; give a folder with GPT-2's weights")


def _refusal(file: Path) -> InputError:
    what = REFUSED.get(file.suffix, "no kind of file that holds weights here")
    return InputError(f"{file} is {what}, and is not opened: {WAY_OUT}")


def _shards(index: Path) -> list[Path]:
    """The files of an index, which must lie beside it; links are followed: the hub's cache is made of them."""
    of_tensors = json_files.read(index, "is no index of weight files", "fetch it again").get("weight_map")
    names = of_tensors.values() if isinstance(of_tensors, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise InputError(
            f"{index} is no index of weight files (its weight_map is {shown(of_tensors)}, and must hold the file of "
            "each tensor); fetch it again"
        )
    names, kind = sorted(set(names)), Path(index.name.removesuffix(".index.json")).suffix
    for name in names:
        beside = Path(name).name == name and name.isprintable() and len(name.encode()) <= LONGEST_FILE
        if not beside or Path(name).suffix != kind:
            raise InputError(
                f"{index} names {shown(name)}, which is no weight file beside it; do not trust this folder"
            )
        if not (index.parent / name).is_file():
            raise InputError(f"{index} names {name}, which is missing; fetch all {len(names)} files")
    return [index.parent / name for name in names]


def load(files: list[Path], config: GPT2Config, *, shardings: Any = None, stacked: bool = False) -> GPT2:
    """A model from weight files: tensors go one by one straight to their devices.

    Args:
      files: from `find`.
      config: of the model; its `n_positions` may be below the files', which are cropped.
      shardings: a tree like the model's, or one sharding for all; None is the first device.
      stacked: blocks stacked to be scanned, as training wants them; else a list, for generation.

    Raises:
      InputError: entries missing, unexpected, of another shape or type, or not finite; or an output layer that is not
        the embedding.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            entries = READERS[file.suffix](file)
        except OSError as error:
            raise InputError(f"{file} cannot be read ({error.strerror}); check its permissions") from None
        for name, tensor in entries.items():
            if (name := plain_name(name)) in found:
                raise InputError(
                    f"{file} has a second {name}; each parameter must be there once: fetch all files again"
                )
            found[name] = tensor
    found = {name: tensor for name, tensor in found.items() if not BUFFERS.fullmatch(name)}
    flax_order = files[0].suffix == ".msgpack"
    _check(found, config, files[0], flax_order)

    def read(name: str) -> np.ndarray:
        return to_model(name, found[name].read(), config, flax_order)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
        name = parameter_name(path)
        if stacked and name.startswith("h."):
            parts = (read(f"h.{i}.{name[2:]}")[None] for i in range(config.n_layer))
        elif name.endswith(".weight"):  # a TransposedLinear
            parts = [np.moveaxis(read(name.removesuffix("weight") + "kernel"), 0, -1)]
        else:
            parts = [read(name)]
        return _place(parts, shape.shape, sharding)

    shapes = model_of_shapes(config, stacked=stacked)
    if shardings is None or isinstance(shardings, jax.sharding.Sharding):
        one = shardings or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: one, shapes)
    return jax.tree_util.tree_map_with_path(leaf, shapes, shardings)


def _place(parts: Iterable[np.ndarray], shape: tuple[int, ...], sharding: jax.sharding.Sharding) -> jax.Array:
    """The parts, one after another along axis 0, each cut at once into this process's shards."""
    of_device = {
        device: tuple(axis.indices(size)[:2] for axis, size in zip(index, shape))
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    }
    shards = {bounds: _aligned([stop - start for start, stop in bounds]) for bounds in of_device.values()}
    first = 0
    for part in parts:
        for ((start, stop), *others), shard in shards.items():
            low, high = max(start, first), min(stop, first + len(part))
            if low < high:
                columns = tuple(slice(*bounds) for bounds in others)
                shard[low - start : high - start] = part[(slice(low - first, high - first), *columns)]
        first += len(part)
    arrays = [jax.device_put(shards[bounds], device) for device, bounds in of_device.items()]
    return jax.block_until_ready(jax.make_array_from_single_device_arrays(shape, sharding, arrays))


def _aligned(shape: list[int]) -> np.ndarray:
    """An empty float32 array at a multiple of 64 bytes, which JAX on CPU takes over as it is; others it copies."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)


def save(model: GPT2, folder: Path, format: Format) -> Path:
    """Writes the file of `format` in `folder`, complete or not at all; float32, one tensor at a time.

    Raises:
      InputError: an unknown format, or the disk refuses.
    """
    if format not in FILES:
        raise InputError(f"format is {format!r}; it must be one of {', '.join(FILES)}")
    model, config = unstack(lora.merge(model)), model.config
    leaves = {}  # the name here of each kernel is that of the stacked model
    for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        name = parameter_name(path)
        transposed = name.endswith(".weight")
        leaves[name.removesuffix("weight") + "kernel" if transposed else name] = (leaf, transposed)
    flax_order = format == "flax"
    names = {name_in_file(name, flax_order): name for name in leaves}
    shapes = file_shapes(config, flax_order)

    def read(name: str) -> np.ndarray:
        leaf, transposed = leaves[names[name]]
        array = np.moveaxis(np.asarray(leaf), -1, 0) if transposed else np.asarray(leaf)
        return to_file(names[name], array, config, flax_order)

    file = folder / FILES[format]
    if flax_order:
        write_msgpack(file, names, read)
    else:
        write_safetensors(file, {name: shapes[own] for name, own in names.items()}, read)
    return file


def _check(found: dict[str, Tensor], config: GPT2Config, file: Path, flax_order: bool) -> None:
    for name, tensor in sorted(found.items()):
        if tensor.dtype not in TYPES:
            raise InputError(f"{tensor.file} has {name} of type {tensor.dtype}; weights must be {', '.join(TYPES)}")
    if config.n_layer > len(found):  # before names are made of as many layers as a config.json likes to claim
        raise InputError(
            f"{file} has {len(found):,} tensors, too few for the {config.n_layer:,} layers of config.json; give the "
            "config.json it came with"
        )
    expected = file_shapes(config, flax_order)
    if config.tie_word_embeddings and (head := found.pop("lm_head.embedding", None)):
        wte = found.get("wte.embedding")
        if wte is None or not np.array_equal(head.read().T if flax_order else head.read(), wte.read()):
            raise InputError(
                f"{file} has an lm_head that differs from wte, and config.json says that they are tied; set "
                "tie_word_embeddings to false there if they are not"
            )
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unexpected:
        some = lambda names: f"{len(names)} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
        parts = [f"lacks {some(missing)}"] * bool(missing) + [f"has unexpected {some(unexpected)}"] * bool(unexpected)
        raise InputError(f"{file} {' and '.join(parts)} for {config.n_layer} layers; give the config.json it came with")
    for name, shape in expected.items():
        there = found[name].shape
        crop = name == "wpe.embedding" and len(there) == 2 and there[0] > shape[0] and there[1] == shape[1]
        if there != shape and not crop:
            raise InputError(f"{file} has {name} of shape {there}; config.json asks for {shape}")

"""What `gpt2_jax.load` opens: training runs, folders of GPT-2's files, the hub."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from gpt2_jax import adapter_files, compilation_cache, json_files, lora, tokenizer_files, weights
from gpt2_jax.config import Config
from gpt2_jax.data.options import START
from gpt2_jax.errors import InputError, one_line, shown
from gpt2_jax.image_language_model import speaking
from gpt2_jax.image_options import ImageConfig
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.model import GPT2, parameter_name
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.multimodal import completion
from gpt2_jax.resizing import resize
from gpt2_jax.tokenizer import Tokenizer

# Fields of GPT-2's config.json: those of GPT2Config that it has, too, in the order of the class.
OWN_FIELDS = ("dtype", "attention", "remat", "scan_unroll", "vocab_multiple")
FIELDS = [field.name for field in dataclasses.fields(GPT2Config) if field.name not in OWN_FIELDS]
# What changes the forward pass elsewhere and is not done here, unless it has this value.
REFUSED = {"add_cross_attention": False, "pruned_heads": {}, "quantization_config": None, "adapters": None}
Source = str | Path | Tokenizer
HUB_FILES = ["*.json", "merges.txt"]
HUB_WEIGHTS = ["*.safetensors", "*.msgpack"]  # the second only where there is nothing of the first


def load(
    path: str | Path,
    *,
    step: int | str | None = None,
    revision: str | None = None,
    tokenizer: Source | None = None,
    n_positions: int | None = None,
    dtype: str | None = None,
    adapter: str | Path | None = None,
) -> LanguageModel:
    """Opens a trained model.

    Args:
      path: the workdir of a training run; a folder with `config.json` and `model.safetensors` or
        `flax_model.msgpack`, whole or in shards; one such file in its folder; or a hub id, "openai-community/gpt2".
      step: of a run, which checkpoint: its step, also as text, "best" (by validation loss), or None, the latest.
      revision: of a hub id: a branch, tag or commit.
      tokenizer: instead of the model's own: a `Tokenizer`, or what `gpt2_jax.tokenizer_files.load` takes.
      n_positions: crop the context to so many positions.
      dtype: of activations and matrix products, "float32" or "bfloat16"; None is a run's own, and float32 for files.
      adapter: of the model at `path`, to be merged into it: a folder or hub id with PEFT's LoRA files. Where it has a
        tokenizer, that is the model's.

    Raises:
      InputError: nothing to load at `path`, or files that are not GPT-2's, damaged, or do not fit each other.
    """
    compilation_cache.enable()
    folder = Path(os.path.expanduser(path))
    if os.path.isdir(folder / "checkpoints"):  # os.path: a hub id may be no name that a file can have
        if revision is not None:
            raise InputError(f"revision is {revision!r}, but {path} is a training run; only hub ids have revisions")
        lm = _load_run(folder, step, tokenizer, dtype)
    else:
        if step is not None:
            raise InputError(f"step is {step!r}, but {path} is no training run; only runs have steps")
        there = os.path.exists(folder)
        if revision is not None and there:
            raise InputError(f"revision is {revision!r}, but {path} is a path; only hub ids have revisions")
        lm = _load_files(folder if there else fetch(str(path), revision), tokenizer, dtype)
    if adapter is not None:
        lm = _with_adapter(lm, adapter, tokenizer)
    if n_positions is not None:
        lm = speaking(resize(lm.model, n_positions=n_positions), lm.tokenizer)
    return lm


def load_config(folder: Path) -> GPT2Config:
    """The `GPT2Config` of a folder's `config.json`.

    Raises:
      InputError: no such file, not GPT-2's, or with an option that is not supported.
    """
    file = folder / "config.json"
    fields = json_files.read(file, "cannot be read", "weights need the config.json they came with")
    if fields.get("model_type", "gpt2") != "gpt2":
        raise InputError(f"{file} has model_type {shown(fields['model_type'])}; only gpt2 is supported")
    for name, harmless in REFUSED.items():
        if fields.get(name) not in (harmless, None):
            raise InputError(
                f"{file} has {name} {shown(fields[name])}, which is not supported; it must be {harmless!r}"
            )
    known = {name: fields[name] for name in FIELDS if name in fields}
    try:
        return Config.from_dict({"model": known}).model
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _load_files(path: Path, other_tokenizer: Source | None, dtype: str | None) -> LanguageModel:
    files = weights.find(path)
    config = dataclasses.replace(load_config(files[0].parent), dtype=dtype or "float32")
    own_tokenizer = _tokenizer(files[0].parent if other_tokenizer is None else other_tokenizer)
    if len(own_tokenizer) > config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(own_tokenizer)} entries and the model {config.vocab_size}; give the model's own "
            "tokenizer, or resize the model (gpt2_jax.resize)"
        )
    return LanguageModel(weights.load(files, config), own_tokenizer)


def _with_adapter(lm: LanguageModel, adapter: str | Path, other_tokenizer: Source | None) -> LanguageModel:
    """The model with PEFT's adapter merged, and the adapter's tokenizer if it has one."""
    folder = Path(os.path.expanduser(adapter))
    if os.path.isdir(folder / "checkpoints"):
        raise InputError(
            f"adapter is {adapter}, a training run; load it as it is, or write its adapter as PEFT's files first "
            "(scripts/convert.py --format=peft)"
        )
    folder = folder if os.path.exists(folder) else fetch(str(adapter), None)
    model = lora.merge(adapter_files.load(folder, lm.model))
    check_finite(model, f"the model with the adapter {folder}")
    own = other_tokenizer is None and (folder / "tokenizer.json").is_file()
    tokenizer = tokenizer_files.load(folder) if own else lm.tokenizer
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"the tokenizer of {folder} has {len(tokenizer)} entries and the model with its adapter "
            f"{model.config.vocab_size}; give the adapter's own base, or tokenizer="
        )
    return speaking(model, tokenizer)


def _tokenizer(source: Source) -> Tokenizer:
    return source if isinstance(source, Tokenizer) else tokenizer_files.load(source)


def _load_run(
    workdir: Path, step: int | str | None, other_tokenizer: Source | None, dtype: str | None
) -> LanguageModel:
    from gpt2_jax.training.checkpoint import Checkpoints  # Orbax takes a second to import: only when needed

    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.find(step)
        groups, saved_tokenizer = checkpoints.read_json(step)
        config = model_of(groups)
        config = dataclasses.replace(config, dtype=dtype or config.dtype)
        own = Tokenizer.from_json(saved_tokenizer) if other_tokenizer is None else _tokenizer(other_tokenizer)
        if (with_adapters := adapters_of(groups)) is not None:
            return speaking(restore_adapted(checkpoints, step, with_adapters, config), own)
        # This machine's first device holds it all, whatever mesh it was trained on.
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        complete = completion(image_of(groups))
        shapes = jax.eval_shape(lambda key: complete(GPT2(config, key), key), jax.random.key(0))
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
        model = checkpoints.restore_model(step, abstract)
        check_finite(model, f"the checkpoint of step {step} in {checkpoints.directory}")
        return speaking(model, own)


def image_of(groups: dict[str, Any]) -> ImageConfig:
    """What the config of a checkpoint says of images; those of earlier versions say nothing.

    Raises:
      InputError: it says what cannot be.
    """
    return Config.from_dict({"image": groups.get("image", {}), "model": groups.get("model", {})}).image


def model_of(groups: dict[str, Any]) -> GPT2Config:
    """The sizes in the config of a checkpoint; of other groups an earlier version may have allowed what is refused now.

    Raises:
      InputError: sizes of no model.
    """
    return Config.from_dict({"model": groups.get("model", {})}).model


def adapters_of(groups: dict[str, Any]) -> Config | None:
    """Of the config of a checkpoint, what says how its adapters were trained, and on what; None if it has none.

    Raises:
      InputError: it says what cannot be.
    """
    lora_options, finetune = groups.get("lora", {}), groups.get("finetune", {})
    if not (isinstance(lora_options, dict) and lora_options.get("rank")):
        return None
    needed = {name: groups.get(name, {}) for name in ("model", "image")} | {"data": {"tokenizer": START}}
    return Config.from_dict(needed | {"lora": lora_options, "finetune": finetune})


def restore_adapted(checkpoints: Any, step: int, config: Config, sizes: GPT2Config) -> GPT2:
    """The model of a checkpoint of adapters, attached, on this machine's first device; else as `adapted.restore`.

    Raises:
      InputError: as there, or numbers that are not finite.
    """
    from gpt2_jax.config import MeshConfig
    from gpt2_jax.sharding import make_mesh
    from gpt2_jax.training import adapted

    devices = jax.local_devices()[:1]
    model = adapted.restore(checkpoints, step, config, sizes, make_mesh(MeshConfig(), devices))
    model = jax.device_put(model, devices[0])  # as all others are that are loaded; copies nothing
    check_finite(model, f"the checkpoint of step {step} in {checkpoints.directory}")
    return model


def check_finite(model: GPT2, what: str) -> None:
    """Raises `InputError` naming the parameter with a number that is not finite, of a model that `what` names."""
    finite = jax.jit(lambda model: jax.tree.map(lambda x: jnp.isfinite(x).all(), model))(model)
    for path, is_finite in jax.tree_util.tree_flatten_with_path(finite)[0]:
        if not is_finite:
            raise InputError(
                f"{what} has numbers in {parameter_name(path)} that are not finite; no model computes with them: take "
                "a checkpoint from before the training diverged"
            )


def fetch(name: str, revision: str | None) -> Path:
    """The folder of a hub id's files, fetched or from the cache.

    Raises:
      InputError: it is no hub id, or cannot be fetched.
    """
    if not tokenizer_files.HUB_ID.fullmatch(name):
        raise InputError(
            f"there is no folder or file {shown(name)}; give the workdir of a training run, a folder with GPT-2's "
            "files, or a hub id such as openai-community/gpt2 (and revision=...)"
        )
    import huggingface_hub

    try:
        for weight_files in HUB_WEIGHTS:
            folder = huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=[*HUB_FILES, weight_files], ignore_patterns="*/*"
            )
            if any(Path(folder).glob(weight_files)):
                break
        return Path(folder)
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise InputError(
            f"{name!r} is no folder or file here and could not be fetched from the hub ({type(error).__name__}: "
            f"{reason}); check the id and the network, or give the workdir of a training run or a folder"
        ) from None

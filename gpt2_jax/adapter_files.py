"""PEFT's files of a low-rank adapter: `adapter_model.safetensors` and `adapter_config.json` <-> a model with adapters.

| entry | shape | what |
| --- | --- | --- |
| base_model.model.transformer.h.0.attn.c_attn.lora_A.weight | (rank, in) | `lora_a`, transposed |
| base_model.model.transformer.h.0.attn.c_attn.lora_B.weight | (out, rank) | `lora_b`, transposed |
| base_model.model.transformer.ln_f.weight | as in GPT-2's files | a module trained whole (`modules_to_save`) |

As PEFT 0.21 writes and reads them (`peft/utils/save_and_load.py`); those of a `GPT2Model` have no "transformer.". The
tensors say which layers are adapted. target_modules is not read: it may be a regular expression, which can take for
ever.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gpt2_jax import json_files, lora
from gpt2_jax.errors import InputError, shown
from gpt2_jax.layers import Adapter
from gpt2_jax.model import GPT2, model_of_shapes, parameter_name, parameter_names, unstack
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.resizing import resize
from gpt2_jax.tensor_files import TYPES, Tensor, make_folder, read_safetensors, write_safetensors, writing
from gpt2_jax.training.finetune_options import ADAPTERS, LoraConfig
from gpt2_jax.weight_layout import file_shapes, name_in_file, plain_name, to_file, to_model

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
ENTRY = re.compile(r"h\.(\d{1,9})\.(attn|mlp)\.(c_attn|c_proj|c_fc)\.lora_([AB])\.weight")
COPIES = re.compile(r"(wte|lm_head)\.(modules_to_save|original_module)\.weight$")  # beside a table that has grown
TABLES = {"wte.embedding", "lm_head.embedding"}
# What of adapter_config.json changes nothing in what an adapter that is trained computes, or is read from the tensors.
HARMLESS = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "auto_mapping", "base_model_name_or_path", "revision"),
    *("peft_version", "task_type", "inference_mode", "target_modules", "exclude_modules", "modules_to_save"),
    *("lora_dropout", "fan_in_fan_out", "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size"),
    *("eva_config", "lora_ga_config", "init_lora_weights"),
}
STARTS = (True, False, "gaussian", "eva", "orthogonal")  # of `init_lora_weights`: others change the base's weights
EMPTY = (None, False, {}, [], "none")  # values of what is not used


def load(folder: Path, model: GPT2) -> GPT2:
    """The model with the adapter of PEFT's files, to be merged or run as it is.

    Modules that were trained whole are in place of the model's. Where that unties the output layer from the embedding,
    as PEFT does with one of both, so it is here; a table of more rows makes the vocabulary as large.

    Args:
      folder: with both files.
      model: the base, stacked or not; stays as it is.

    Raises:
      InputError: files missing or damaged, of another kind of adapter or another model; numbers that are not finite.
    """
    lora.check_bare(model)
    adapter, rank = _read_config(folder / CONFIG_FILE)
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        pickle = (folder / "adapter_model.bin").is_file()
        what = "only adapter_model.bin, a pickle, which can run any code" if pickle else f"no {WEIGHTS_FILE}"
        raise InputError(f"{folder} has {what}; save the adapter with PEFT 0.5 or later, which writes {WEIGHTS_FILE}")
    pairs, whole = _read_entries(file, model.config, rank)
    model = _with_modules(file, model, whole)
    for name, layer, linear in lora.linears(model):
        layers = range(model.config.n_layer) if layer is None else [layer]
        there = [i for i in layers if (i, name) in pairs]
        if not there:
            continue
        I, *O = lora.kernel_shape(linear)[layer is None :]
        a, b = np.zeros((len(layers), I, rank), np.float32), np.zeros((len(layers), rank, *O), np.float32)
        for i in there:
            at = i if layer is None else 0
            a[at], b[at] = pairs[i, name]["A"].read().T, pairs[i, name]["B"].read().T.reshape(rank, *O)
        lora.put(linear, adapter, *(jnp.asarray(x if layer is None else x[0]) for x in (a, b)))
    return model


def _read_config(file: Path) -> tuple[Adapter, int]:
    """(scale and dropout, rank)."""
    fields = json_files.read(file, "is no adapter_config.json of PEFT", "give the folder that save_pretrained wrote")
    if fields.get("peft_type") != "LORA":
        raise InputError(f"{file} has peft_type {shown(fields.get('peft_type'))}; only LORA is supported")
    for name, value in fields.items():
        if name not in HARMLESS and value not in EMPTY:
            raise InputError(
                f"{file} has {shown(name)} {shown(value)}, which is not supported: merge the adapter with PEFT "
                "(merge_and_unload) and give the whole model"
            )
    start = fields.get("init_lora_weights", True)
    if not any(start is known or (isinstance(start, str) and start == known) for known in STARTS):
        raise InputError(
            f"{file} has init_lora_weights {shown(start)}, with which PEFT changes the base, too; save it as "
            "LoRA (path_initial_model_for_weight_conversion), or merge the adapter with PEFT"
        )
    rank, alpha, dropout = (fields.get(name) for name in ("r", "lora_alpha", "lora_dropout"))
    rslora, dropout = fields.get("use_rslora") or False, 0.0 if dropout is None else dropout
    is_number = lambda value: type(value) in (int, float)
    for name, value, right, wanted in (
        ("r", rank, type(rank) is int and rank > 0, "an integer above 0"),
        ("lora_alpha", alpha, is_number(alpha) and alpha > 0, "a number above 0"),
        ("lora_dropout", dropout, is_number(dropout) and 0 <= dropout < 1, "in [0, 1)"),
        ("use_rslora", rslora, type(rslora) is bool, "true or false"),
    ):
        if not right:
            raise InputError(f"{file} has {name} {shown(value)}; it must be {wanted}: fetch it again")
    config = LoraConfig(rank=rank, alpha=float(alpha), dropout=float(dropout), rslora=rslora)
    return Adapter(config.scale, config.dropout), rank


def _read_entries(
    file: Path, config: GPT2Config, rank: int
) -> tuple[dict[tuple[int, str], dict[str, Tensor]], dict[str, Tensor]]:
    """({(layer, name of a linear layer): {"A", "B"}}, {name here of a parameter trained whole: it}), checked."""
    pairs: dict[tuple[int, str], dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    shapes = file_shapes(config, flax_order=False)
    for entry, tensor in read_safetensors(file).items():
        if COPIES.search(entry):
            continue
        name = entry.removeprefix(PREFIX).removeprefix("transformer.")
        if tensor.dtype not in TYPES:
            raise InputError(f"{file} has {entry} of type {tensor.dtype}; it must be {', '.join(TYPES)}")
        found = ENTRY.fullmatch(name)
        own = name.partition(".lora_")[0] + ".kernel" if found else plain_name(name)
        is_table = own in TABLES and len(tensor.shape) == 2  # of any number of rows
        if not entry.startswith(PREFIX) or not (own in shapes or is_table):
            raise InputError(
                f"{file} has {entry}, which is no part of a LoRA adapter for this GPT-2 of {config.n_layer} layers; "
                "give the model that it was trained on"
            )
        if found:
            layer, part, linear, which = found.groups()
            known = pairs.setdefault((int(layer), f"h.{part}.{linear}"), {})
            wanted = (rank, shapes[own][0]) if which == "A" else (shapes[own][1], rank)
        else:
            known, which = whole, own
            wanted = (max(1, tensor.shape[0]), config.n_embd) if is_table else shapes[own]
        if which in known:
            raise InputError(f"{file} has a second {name}; it must be there once: fetch it again")
        if tensor.shape != wanted:
            raise InputError(f"{file} has {entry} of shape {tensor.shape}; r and the model ask for {wanted}")
        known[which] = tensor
    for (layer, name), pair in pairs.items():
        if len(pair) != 2:
            raise InputError(f"{file} has one of lora_A and lora_B for layer {layer} of {name}; fetch it again")
    if not pairs and not whole:
        raise InputError(f"{file} has no tensors; give the folder of an adapter that was trained")
    return pairs, whole


def _with_modules(file: Path, model: GPT2, whole: dict[str, Tensor]) -> GPT2:
    """A copy of the model with the parameters of a file in place of its own."""
    rows = {whole[name].shape[0] for name in TABLES if name in whole}
    if len(rows) > 1 or (rows and rows != {model.config.vocab_size} and len(TABLES & whole.keys()) == 1):
        raise InputError(
            f"{file} has tables of {' and '.join(map(str, sorted(rows)))} rows, and the model has "
            f"{model.config.vocab_size} tokens; of another vocabulary, both wte and lm_head must be there "
            "(modules_to_save), of as many rows"
        )
    model = resize(model, vocab_size=rows.pop()) if rows else model
    config, stacked = model.config, not isinstance(model.h, nnx.List)
    leaves: dict[str, Any] = {parameter_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(model)}
    head = leaves["wte.embedding"]
    for name, tensor in whole.items():
        array = to_model(name, tensor.read(), config, False)
        if stacked and name.startswith("h."):
            _, layer, name = name.split(".", 2)
            leaves[f"h.{name}"] = stack = np.array(leaves[f"h.{name}"])
            stack[int(layer)] = array
        elif name.endswith(".kernel"):
            leaves[name.removesuffix("kernel") + "weight"] = np.moveaxis(array, 0, -1)
        else:
            leaves[name] = array
    if config.tie_word_embeddings:
        head = leaves.setdefault("lm_head.embedding", head)
        config = dataclasses.replace(config, tie_word_embeddings=np.array_equal(head, leaves["wte.embedding"]))
    shapes = model_of_shapes(config, stacked=stacked)
    return jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(leaves[parameter_name(path)]), shapes)


def save(model: GPT2, config: LoraConfig, folder: Path, *, base: str | None = None) -> Path:
    """Writes both files, which `PeftModel.from_pretrained(base_model, folder)` opens; float32.

    Args:
      model: with adapters, stacked or not.
      config: that they were attached by. What `also_train` finds is saved with its whole module, and an embedding that
        is the output layer, too, as both.
      folder: made if absent.
      base: the hub id or folder of the model that they were trained on, for PEFT's `AutoPeftModel`.

    Raises:
      InputError: no adapters, or others than `config` says; a layer that has an adapter and is trained whole, for which
        PEFT has no place; or the disk refuses.
    """
    model = unstack(model)
    adapted = {name: linear for name, _, linear in lora.linears(model) if linear.adapter is not None}
    if not adapted:
        raise InputError("the model has no adapters; attach them (lora.attach) and train them first")
    for name, linear in adapted.items():
        rank, scale = linear.lora_a[...].shape[-1], linear.adapter.scale
        if (rank, scale) != (config.rank, config.scale):
            raise InputError(
                f"the adapter of {name} has rank {rank} and scale {scale}, and the config {config.rank} and "
                f"{config.scale}; give the LoraConfig that it was attached by"
            )
    tensors: dict[str, np.ndarray] = {}
    for name, layer, linear in lora.linears(model):
        if linear.adapter is not None:
            stem = f"{PREFIX}transformer.h.{layer}.{name.removeprefix('h.')}.lora_"
            tensors[f"{stem}A.weight"] = np.asarray(linear.lora_a[...]).T
            tensors[f"{stem}B.weight"] = np.asarray(linear.lora_b[...]).reshape(config.rank, -1).T
    modules = _modules(model, config)
    for module in modules:
        if module in adapted:
            raise InputError(
                f"lora.also_train is {shown(config.also_train)}, which finds parameters of {module}; it has an adapter,"
                " and PEFT has no place for both: save the merged model instead"
            )
        tensors |= _of_module(model, module)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": sorted(name.removeprefix("h.") for name in adapted),
        "modules_to_save": [module.removeprefix("h.") for module in modules] or None,
        "fan_in_fan_out": True,  # GPT-2's layers are Conv1D
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
    make_folder(folder)
    with writing(folder / CONFIG_FILE) as stream:
        stream.write((json.dumps(fields, indent=2) + "\n").encode())
        write_safetensors(folder / WEIGHTS_FILE, {name: x.shape for name, x in tensors.items()}, tensors.__getitem__)
    return folder


def _modules(model: GPT2, config: LoraConfig) -> list[str]:
    """The modules that have parameters which are trained whole, without the numbers of layers."""
    if not config.also_train:
        return []
    names = {re.sub(r"^h\.\d+\.", "h.", name) for name in jax.tree.leaves(parameter_names(model))}
    names = {name.removesuffix("weight") + "kernel" if name.endswith(".weight") else name for name in names}
    found = [name for name in names if re.search(config.also_train, name) and not re.search(ADAPTERS, name)]
    modules = {name.rpartition(".")[0] for name in found}
    if model.config.tie_word_embeddings and "wte" in modules:
        modules.add("lm_head")  # PEFT leaves an output layer as it was, unless it is saved, too
    return sorted(modules)


def _of_module(model: GPT2, module: str) -> dict[str, np.ndarray]:
    """{name in the file: array} of a module, in all layers."""
    tensors, source = {}, "wte" if module == "lm_head" and model.config.tie_word_embeddings else module
    for path, leaf in jax.tree_util.tree_leaves_with_path(model):
        name, array = parameter_name(path), np.asarray(leaf)
        if re.sub(r"^h\.\d+\.", "h.", name).rpartition(".")[0] != source:
            continue
        if name.endswith(".weight"):  # a TransposedLinear
            name, array = name.removesuffix("weight") + "kernel", np.moveaxis(array, -1, 0)
        array = to_file(name, array, model.config, False)
        tensors[PREFIX + name_in_file(name.replace(source, module, 1), False)] = array
    return tensors

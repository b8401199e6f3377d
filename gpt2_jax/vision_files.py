"""The ViT of a CLIP or a ViT as Hugging Face writes them: `config.json`, `preprocessor_config.json`, safetensors.

Their classes are CLIPModel or CLIPVisionModel, and ViTModel or ViTForImageClassification; of what is not the ViT (the
text's half, projections, pooler, classifier) nothing is read.
"""

import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gpt2_jax import json_files, weights
from gpt2_jax.errors import InputError, shown
from gpt2_jax.image_options import ImageConfig
from gpt2_jax.model import parameter_name
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tensor_files import TYPES, Tensor, read_safetensors
from gpt2_jax.vision import ViT

# {name here: name there}, of layers within their folder; the three of attention are one kernel here.
CLIP = {
    "patch": "embeddings.patch_embedding", "wpe.embedding": "embeddings.position_embedding.weight",
    "cls.embedding": "embeddings.class_embedding", "ln_pre": "pre_layrnorm", "ln_f": "post_layernorm",
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.c_proj": "self_attn.out_proj", "attn.c_attn": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
}  # fmt: skip
VIT = {
    "patch": "embeddings.patch_embeddings.projection", "wpe.embedding": "embeddings.position_embeddings",
    "cls.embedding": "embeddings.cls_token", "ln_f": "layernorm", "ln_1": "layernorm_before", "ln_2": "layernorm_after",
    "mlp.c_fc": "intermediate.dense", "mlp.c_proj": "output.dense", "attn.c_proj": "attention.output.dense",
    "attn.c_attn": "attention.attention.query attention.attention.key attention.attention.value",
}  # fmt: skip
# model_type: (names, prefix, folder of layers, no part of the ViT, defaults of config.json)
LAYOUTS = {
    "clip_vision_model": (
        CLIP, "vision_model.", "encoder.layers",
        r"text_model\.|logit_scale|(visual|text)_projection\.|embeddings\.position_ids",
        {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    ),
    "vit": (
        VIT, "vit.", "encoder.layer", r"pooler\.|classifier\.",
        {"patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
    ),
}  # fmt: skip
# {option: (name in config.json, its default)}
FIELDS = {
    "size": ("image_size", 224), "channels": ("num_channels", 3), "patch_size": ("patch_size", None),
    "n_embd": ("hidden_size", 768), "n_layer": ("num_hidden_layers", 12), "n_head": ("num_attention_heads", 12),
    "n_inner": ("intermediate_size", 3072), "activation_function": ("hidden_act", None),
    "layer_norm_epsilon": ("layer_norm_eps", None),
}  # fmt: skip
SIZES = (*FIELDS, "mean", "std", "class_token", "pre_norm")


def sized(options: dict[str, dict[str, Any]], saved: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The options with the sizes of `image.weights` in the group `image`.

    Args:
      options: of a run.
      saved: that group of the run's own checkpoint, which says them, too; or None.

    Raises:
      InputError: the folder cannot be read, or an option is neither at its default nor as there.
    """
    image, different = dict(options["image"]), []
    theirs = sizes_of(Path(os.path.expanduser(image["weights"]))) if saved is None else saved
    for name in SIZES:
        default = getattr(ImageConfig, name)
        if image.get(name, default) not in (default, theirs[name]):
            different.append(f"image.{name} ({theirs[name]!r} there, {image[name]!r} here)")
        image[name] = theirs[name]
    if different:
        raise InputError(
            f"image.weights is {image['weights']}, of other sizes: {', '.join(different)}. Leave them out of the config"
        )
    return options | {"image": image}


def sizes_of(folder: Path) -> dict[str, Any]:
    """The options that a folder's config.json and preprocessor_config.json say.

    Raises:
      InputError: no such files, or of another model.
    """
    kind, config = _config(folder)
    defaults = LAYOUTS[kind][4]
    sizes = {name: config.get(there, defaults.get(there, default)) for name, (there, default) in FIELDS.items()}
    sizes["layer_norm_epsilon"] = float(sizes["layer_norm_epsilon"])
    processor = json_files.find(folder / "preprocessor_config.json") or {}
    for name in ("mean", "std"):
        numbers = processor.get(f"image_{name}", [0.5])
        sizes[name] = ", ".join(map(str, numbers if isinstance(numbers, list) else [numbers]))
    return sizes | {"class_token": True, "pre_norm": "ln_pre" in LAYOUTS[kind][0]}


def load_vit(folder: str | Path, image: ImageConfig, config: GPT2Config) -> ViT:
    """The ViT in a folder.

    Args:
      folder: with config.json and model.safetensors, whole or in shards.
      image: as `sizes_of` says.
      config: of the GPT-2 beside it.

    Raises:
      InputError: entries missing, unexpected, of another shape or type, or not finite; or an image size that the
        positions are not for.
    """
    folder = Path(os.path.expanduser(folder))
    kind, _ = _config(folder)
    names, prefix, layers, others, _ = LAYOUTS[kind]
    found: dict[str, Tensor] = {}
    for file in weights.find(folder):
        if file.suffix != ".safetensors":
            raise InputError(f"{file} is no safetensors file, of which alone a ViT is read; convert it")
        for name, tensor in read_safetensors(file).items():
            if not re.match(others, name.removeprefix(prefix)) and not re.match(others, name):
                found[name.removeprefix(prefix)] = tensor
    read: set[str] = set()

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        there = found.get(name)
        if there is None or there.dtype not in TYPES:
            why = f"lacks {name}" if there is None else f"has {name} of type {there.dtype}"
            raise InputError(f"{folder} {why}; a {kind} of {image.n_layer} layers needs it: fetch all files again")
        if there.shape != shape:
            raise InputError(f"{folder} has {name} of shape {there.shape}; config.json asks for {shape}")
        read.add(name)
        return there.read()

    def leaf(path: Any, of: jax.ShapeDtypeStruct) -> np.ndarray:
        name = parameter_name(path)
        if not name.startswith("h."):
            return _value(name, names, of.shape, tensor, "", found)
        own, shape = name.removeprefix("h."), of.shape[1:]
        return np.stack([_value(own, names, shape, tensor, f"{layers}.{i}.", found) for i in range(image.n_layer)])

    shapes = jax.eval_shape(lambda key: ViT(image, config, key), jax.random.key(0))
    model = jax.tree_util.tree_map_with_path(leaf, shapes)
    if left := sorted(found.keys() - read):
        some = f"{len(left)} ({', '.join(left[:4])}{', ...' * (len(left) > 4)})"
        raise InputError(f"{folder} has unexpected {some} for a {kind} of {image.n_layer} layers; give the config.json "
                         "it came with")  # fmt: skip
    return model


def named(folder: str, image: ImageConfig, config: GPT2Config) -> dict[str, np.ndarray]:
    """The leaves of `load_vit` by their names in an `ImageGPT2`."""
    leaves = jax.tree_util.tree_leaves_with_path(load_vit(folder, image, config))
    return {f"vision.{parameter_name(path)}": leaf for path, leaf in leaves}


def _value(name, names, shape, tensor, within, found) -> np.ndarray:
    """A parameter by its name here, of its shape here."""
    if name in names:  # a table
        there = f"{within}{names[name]}"
        theirs = found[there].shape if there in found else shape
        plain = shape if len(theirs) == 2 else shape[1:] if len(theirs) == 1 else (1, *shape)
        return tensor(there, plain).reshape(shape)
    module, _, part = name.rpartition(".")
    suffix = "bias" if part == "bias" else "weight"
    there = [f"{within}{own}.{suffix}" for own in names[module].split()]
    if module == "patch":
        return _patch(there[0], part, shape, tensor, found)
    if module == "attn.c_attn":  # [I, 3, O] of three [O, I]
        parts = [tensor(own, shape[-1:] if part == "bias" else (shape[-1], shape[0])).T for own in there]
        return np.stack(parts, axis=-2)
    value = tensor(there[0], shape[::-1])
    return value.T


def _patch(name: str, part: str, shape: tuple[int, ...], tensor, found) -> np.ndarray:
    """A convolution [D, I, p, p] as the kernel [p * p * I, D]; CLIP's has no bias."""
    if part == "bias":
        return tensor(name, shape) if name in found else np.zeros(shape, np.float32)
    theirs = found[name].shape if name in found else ()
    square = len(theirs) == 4 and theirs[2] == theirs[3] and theirs[1] * theirs[2] ** 2 == shape[0]
    wanted = (shape[1], *theirs[1:]) if square else (shape[1], shape[0])
    return tensor(name, wanted).transpose(2, 3, 1, 0).reshape(shape)


def _config(folder: Path) -> tuple[str, dict[str, Any]]:
    """The layout's name, and what config.json says of the ViT."""
    config = json_files.read(folder / "config.json", "cannot be read", "a ViT needs the config.json it came with")
    if config.get("model_type") == "clip":
        config = {"model_type": "clip_vision_model"} | (config.get("vision_config") or {})
    kind = config.get("model_type")
    if kind not in LAYOUTS:
        raise InputError(
            f"{folder / 'config.json'} has model_type {shown(kind)}; image.weights must be a clip, a "
            "clip_vision_model or a vit"
        )
    return kind, config

"""The ViT against numpy as Hugging Face's classes compute it, of files in their layouts."""

import json
import math

import jax
import numpy as np
import pytest

from gpt2_jax.errors import InputError
from gpt2_jax.image_options import ImageConfig
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tensor_files import write_safetensors
from gpt2_jax.vision_files import load_vit, sized, sizes_of

D, INNER, LAYERS, HEADS, SIZE, PATCH, I = 12, 20, 2, 3, 8, 4, 3
P = (SIZE // PATCH) ** 2
FIELDS = {
    "hidden_size": D, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "image_size": SIZE, "patch_size": PATCH, "num_channels": I,
}  # fmt: skip
MEAN, STD = [0.48, 0.45, 0.4], [0.26, 0.27, 0.28]
GPT = GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=1)
PARTS = {
    "clip": ("layer_norm1", "layer_norm2", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
             "self_attn.out_proj", "mlp.fc1", "mlp.fc2"),
    "vit": ("layernorm_before", "layernorm_after", "attention.attention.query", "attention.attention.key",
            "attention.attention.value", "attention.output.dense", "intermediate.dense", "output.dense"),
}  # fmt: skip
FORMS = {  # layout, prefix of names, model_type, what else the file has
    "clip": ("clip", "vision_model.", "clip", {"text_model.final_layer_norm.weight": (4,), "logit_scale": (1,)}),
    "clip vision": ("clip", "vision_model.", "clip_vision_model", {}),
    "vit": ("vit", "", "vit", {"pooler.dense.weight": (D, D)}),
    "classifier": ("vit", "vit.", "vit", {"classifier.bias": (3,)}),
}


def tensors_of(layout):
    clip = layout == "clip"
    shapes = {
        "embeddings.class_embedding" if clip else "embeddings.cls_token": (D,) if clip else (1, 1, D),
        "embeddings.patch_embedding.weight" if clip else "embeddings.patch_embeddings.projection.weight":
            (D, I, PATCH, PATCH),
        "embeddings.position_embedding.weight" if clip else "embeddings.position_embeddings":
            (P + 1, D) if clip else (1, P + 1, D),
    } | ({} if clip else {"embeddings.patch_embeddings.projection.bias": (D,)})  # fmt: skip
    for norm in ("pre_layrnorm", "post_layernorm") if clip else ("layernorm",):
        shapes |= {f"{norm}.weight": (D,), f"{norm}.bias": (D,)}
    for layer in range(LAYERS):
        sizes = [(D,), (D,), (D, D), (D, D), (D, D), (D, D), (INNER, D), (D, INNER)]
        for part, shape in zip(PARTS[layout], sizes):
            name = f"encoder.layer{'s' * clip}.{layer}.{part}"
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    rng = np.random.default_rng(0)
    return {name: rng.normal(scale=0.4, size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder, form, changes=(), **config):
    """A folder in one of `FORMS`, and the tensors of its ViT; `changes` are made to the file's."""
    layout, prefix, kind, others = FORMS[form]
    tensors = tensors_of(layout)
    stored = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    stored |= {name: np.ones(shape, np.float32) for name, shape in others.items()}
    stored = {name: tensor for name, tensor in (stored | dict(changes)).items() if tensor is not None}
    folder.mkdir(exist_ok=True)
    write_safetensors(
        folder / "model.safetensors", {name: tensor.shape for name, tensor in stored.items()}, stored.__getitem__
    )
    act = {} if layout == "clip" else {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
    fields = FIELDS | act | config
    whole = {"model_type": kind, "vision_config": fields} if kind == "clip" else {"model_type": kind, **fields}
    (folder / "config.json").write_text(json.dumps(whole))
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    return tensors


def by_numpy(tensors, layout, pixels):
    """As CLIPVisionTransformer and ViTModel do it, patch by patch and head by head; all states normalised."""
    clip = layout == "clip"
    norm1, norm2, q, k, v, out, fc1, fc2 = PARTS[layout]
    epsilon, act = (1e-5, lambda x: x / (1 + np.exp(-1.702 * x))) if clip else (1e-12, gelu)
    x = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    conv = tensors["embeddings.patch_embedding.weight" if clip else "embeddings.patch_embeddings.projection.weight"]
    bias = 0 if clip else tensors["embeddings.patch_embeddings.projection.bias"]
    rows = [
        np.einsum("hwi,dihw->d", x[r : r + PATCH, c : c + PATCH], conv) + bias
        for r in range(0, SIZE, PATCH)
        for c in range(0, SIZE, PATCH)
    ]
    first = tensors["embeddings.class_embedding" if clip else "embeddings.cls_token"].reshape(1, D)
    places = tensors["embeddings.position_embedding.weight" if clip else "embeddings.position_embeddings"]
    x = np.concatenate([first, rows]) + places.reshape(-1, D)

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    linear = lambda x, name: x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
    x = norm(x, "pre_layrnorm") if clip else x
    for layer in range(LAYERS):
        at = lambda name, layer=layer: f"encoder.layer{'s' * clip}.{layer}.{name}"
        y, heads = norm(x, at(norm1)), []
        for h in range(HEADS):
            own = slice(h * D // HEADS, (h + 1) * D // HEADS)
            scores = linear(y, at(q))[:, own] @ linear(y, at(k))[:, own].T / math.sqrt(D // HEADS)
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(scores / scores.sum(-1, keepdims=True) @ linear(y, at(v))[:, own])
        x = x + linear(np.concatenate(heads, -1), at(out))
        x = x + linear(act(linear(norm(x, at(norm2)), at(fc1))), at(fc2))
    return norm(x, "post_layernorm" if clip else "layernorm")


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@pytest.mark.parametrize("form", FORMS)
def test_states_are_those_of_the_published_classes(tmp_path, form):
    tensors = write(tmp_path, form)
    image = ImageConfig(source="folder", paths="images", **sizes_of(tmp_path))
    assert (image.mean, image.class_token, image.pre_norm) == ("0.48, 0.45, 0.4", True, FORMS[form][0] == "clip")
    pixels = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, I)).astype(np.uint8)
    states = jax.jit(lambda vit: vit(pixels))(load_vit(tmp_path, image, GPT))
    wanted = [by_numpy(tensors, FORMS[form][0], one.astype(np.float64)) for one in pixels]
    np.testing.assert_allclose(states, wanted, atol=2e-5)


KERNEL = "vision_model.encoder.layers.1.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({KERNEL: None}, {}, r"lacks encoder\.layers\.1\.mlp\.fc1\.weight; a clip_vision_model of 2 layers needs it"),
        ({KERNEL: np.ones((3, 3))}, {}, r"has encoder.* of shape \(3, 3\); config\.json asks for \(20, 12\)"),
        ({"vision_model.strange": np.ones(3)}, {}, r"has unexpected 1 \(strange\) for a clip_vision_model of 2 layers"),
        ({}, {"num_hidden_layers": 1}, r"has unexpected 16 \(encoder\.layers\.1\.layer_norm1\.bias, .*, \.\.\.\)"),
        ({}, {"image_size": 12}, r"has embeddings\.position_embedding\.weight of shape \(5, 12\); config\.json asks"),
        ({KERNEL: np.full((20, 12), np.nan)}, {}, r"has 240 numbers in .*fc1\.weight that are not finite"),
        ({}, {"model_type": "siglip"}, r"has model_type 'siglip'; image\.weights must be a clip, a clip_vision_model"),
    ],
)
def test_what_a_folder_lacks_is_named(tmp_path, changes, config, message):
    write(tmp_path, "clip vision", changes, **config)
    with pytest.raises(InputError, match=message):
        load_vit(tmp_path, ImageConfig(source="folder", paths="images", **sizes_of(tmp_path)), GPT)


def test_sizes_are_the_folders(tmp_path):
    write(tmp_path, "clip")
    options = {"image": {"source": "digits", "weights": str(tmp_path), "n_layer": 2}}
    found = sized(options, None)["image"]
    assert (found["n_embd"], found["patch_size"], found["activation_function"]) == (D, PATCH, "quick_gelu")
    assert sized(options, found)["image"] == found
    with pytest.raises(InputError, match=r"of other sizes: image\.n_embd \(12 there, 64 here\)\. Leave them out"):
        sized({"image": options["image"] | {"n_embd": 64}}, None)

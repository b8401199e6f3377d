"""Names, shapes and orientation of GPT-2's parameters in files.

| source | names | matrices |
| --- | --- | --- |
| GPT2 here, stacked | h.attn.c_attn.kernel | (layers, in, out), c_attn (layers, in, 3, out) |
| GPT2 here, layers apart | h.0.attn.c_attn.weight | (out, in), c_attn (3, out, in) |
| safetensors | transformer.h.0.attn.c_attn.weight, or without "transformer." | (in, out) |
| msgpack | transformer/h/0/attn/c_attn/kernel | (out, in) |

"The name here" is that of a layer apart with the matrix of a `Linear`: h.0.attn.c_attn.kernel.
"""

import numpy as np

from gpt2_jax.model_config import GPT2Config


def file_shapes(config: GPT2Config, flax_order: bool) -> dict[str, tuple[int, ...]]:
    """The shape in a file of every parameter, by the name here, layers apart."""
    C, inner, shapes = config.n_embd, config.n_inner or 4 * config.n_embd, {}
    norm, matrix = lambda: {"scale": (C,), "bias": (C,)}, lambda i, o: {"kernel": (i, o), "bias": (o,)}
    block = {
        "ln_1": norm(), "attn.c_attn": matrix(C, 3 * C), "attn.c_proj": matrix(C, C),
        "ln_2": norm(), "mlp.c_fc": matrix(C, inner), "mlp.c_proj": matrix(inner, C),
    }  # fmt: skip
    modules = {
        "wte": {"embedding": (config.vocab_size, C)},
        "wpe": {"embedding": (config.n_positions, C)},
        **{f"h.{i}.{name}": parts for i in range(config.n_layer) for name, parts in block.items()},
        "ln_f": norm(),
    }
    if not config.tie_word_embeddings:
        modules["lm_head"] = {"embedding": (config.vocab_size, C)}
    for module, parts in modules.items():
        for part, shape in parts.items():
            name = f"{module}.{part}"
            shapes[name] = shape[::-1] if _is_transposed(name, flax_order) else shape
    return shapes


def _is_transposed(name: str, flax_order: bool) -> bool:
    return flax_order and name.endswith((".kernel", "lm_head.embedding"))


def plain_name(name: str) -> str:
    """The name here of an entry in a file."""
    name = name.replace("/", ".").removeprefix("transformer.")
    if name == "lm_head.kernel":
        return "lm_head.embedding"
    if name.endswith(".weight"):
        module = name.removesuffix(".weight")
        last = module.rpartition(".")[2]
        part = "embedding" if last in ("wte", "wpe", "lm_head") else "scale" if last.startswith("ln_") else "kernel"
        return f"{module}.{part}"
    return name


def name_in_file(name: str, flax_order: bool) -> str:
    """The name in a file of a parameter by its name here."""
    if flax_order:
        return "lm_head/kernel" if name == "lm_head.embedding" else "transformer/" + name.replace(".", "/")
    module, _, part = name.rpartition(".")
    name = f"{module}.{'bias' if part == 'bias' else 'weight'}"
    return name if module == "lm_head" else f"transformer.{name}"


def to_model(name: str, array: np.ndarray, config: GPT2Config, flax_order: bool) -> np.ndarray:
    """A file's matrix in the shape and orientation of the model."""
    if _is_transposed(name, flax_order):
        array = array.T
    if ".c_attn." in name:
        return array.reshape(*array.shape[:-1], 3, config.n_embd)
    if name == "wpe.embedding":
        return array[: config.n_positions]
    if name.endswith(".embedding"):
        rows = config.padded_vocab_size - len(array)
        return np.pad(array, ((0, rows), (0, 0))) if rows else array
    return array


def to_file(name: str, array: np.ndarray, config: GPT2Config, flax_order: bool) -> np.ndarray:
    """A matrix of the model in the shape and orientation of a file."""
    if ".c_attn." in name:
        array = array.reshape(*array.shape[:-2], -1)
    if name in ("wte.embedding", "lm_head.embedding"):
        array = array[: config.vocab_size]
    return array.T if _is_transposed(name, flax_order) else array

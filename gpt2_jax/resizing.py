"""Another vocabulary or context for a trained model."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax import lora
from gpt2_jax.errors import InputError
from gpt2_jax.model import GPT2, model_of_shapes, parameter_name


def resize(model: GPT2, *, vocab_size: int | None = None, n_positions: int | None = None) -> GPT2:
    """The model with another vocabulary, another context, or both.

    New rows of the embeddings are the mean of the old ones, rows past `vocab_size` are gone, and so are the positions
    past `n_positions`.

    Raises:
      InputError: a longer context, for which nothing was learned, a size below 1, a model with adapters or images, or
        a mix of models.
    """
    if not isinstance(model, GPT2):
        raise InputError("a mix of models has no size of its own; resize its models, then mix them")
    if type(model) is not GPT2:
        raise InputError(
            "a model that reads images keeps its vocabulary and its context; resize its GPT-2 alone (lm.text_model()), "
            "and start a run with images from that"
        )
    lora.check_bare(model)
    old, sizes = model.config, {"vocab_size": vocab_size, "n_positions": n_positions}
    config = dataclasses.replace(old, **{name: size for name, size in sizes.items() if size is not None})
    if config.n_positions > old.n_positions:
        raise InputError(
            f"n_positions is {n_positions}; the model has {old.n_positions} positions and can only be cropped: use as "
            "many or fewer"
        )

    def fit(path: Any, leaf: jax.Array, shape: jax.ShapeDtypeStruct) -> jax.Array:
        name = parameter_name(path)
        if name == "wpe.embedding":
            return leaf[: config.n_positions]
        if not name.endswith(".embedding"):
            return leaf
        mean = leaf[: old.vocab_size].mean(0, keepdims=True)
        rows = jnp.concatenate(
            [leaf[: old.vocab_size], jnp.repeat(mean, max(0, config.vocab_size - old.vocab_size), 0)]
        )
        return jnp.pad(rows[: config.vocab_size], ((0, shape.shape[0] - config.vocab_size), (0, 0)))

    shapes = model_of_shapes(config, stacked=not isinstance(model.h, nnx.List))
    new, (old_leaves, _) = jax.tree.structure(shapes), jax.tree_util.tree_flatten_with_path(model)
    fitted = [fit(path, leaf, shape) for (path, leaf), shape in zip(old_leaves, jax.tree.leaves(shapes))]
    return jax.tree.unflatten(new, fitted)

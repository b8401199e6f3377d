"""Which parameters a run trains, by their names, and how fast; the others stay as they are, to the bit.

The part that is trained is a model whose other leaves are None, and a tree of gradients, updates or moments of it has
no leaf there either: what is frozen costs neither arithmetic nor memory.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.config import FinetuneConfig
from gpt2_jax.errors import InputError, shown
from gpt2_jax.model import GPT2, parameter_names

ALL = FinetuneConfig()


def trained_mask(model: GPT2, config: FinetuneConfig) -> GPT2:
    """A tree of bools: True where a parameter is trained, at least in some layers.

    Args:
      model: stacked, of arrays or of shapes.

    Raises:
      InputError: a pattern that finds no parameter, more layers than there are, or nothing is left to train.
    """
    names, n_layer = parameter_names(model), model.config.n_layer
    there = ", ".join(sorted(jax.tree.leaves(names)))
    for option in ("train", "freeze"):
        pattern = getattr(config, option)
        if pattern and not any(re.search(pattern, name) for name in jax.tree.leaves(names)):
            raise InputError(
                f"finetune.{option} is {shown(pattern)}, which is found in no parameter's name; the names are {there}"
            )
    if config.freeze_layers > n_layer:
        raise InputError(
            f"finetune.freeze_layers is {config.freeze_layers}; the model has {n_layer} layers: use at most as many"
        )

    def is_trained(name: str) -> bool:
        if config.freeze_layers == n_layer and name.startswith("h."):
            return False
        return bool(re.search(config.train, name)) and not (config.freeze and re.search(config.freeze, name))

    mask = jax.tree.map(is_trained, names)
    if not any(jax.tree.leaves(mask)):
        raise InputError(
            f"nothing is left to train: finetune.train is {shown(config.train)}, finetune.freeze "
            f"{shown(config.freeze)} and finetune.freeze_layers {config.freeze_layers} of {n_layer}; the names are "
            f"{there}"
        )
    return mask


def split(model: GPT2, config: FinetuneConfig) -> tuple[GPT2, GPT2]:
    """The parts that are trained and frozen: each the model with None for the leaves of the other."""
    mask = trained_mask(model, config)
    trained = jax.tree.map(lambda keep, x: x if keep else None, mask, model)
    return trained, jax.tree.map(lambda keep, x: None if keep else x, mask, model)


def join(trained: GPT2, frozen: GPT2) -> GPT2:
    """The model that `split` took apart."""
    return jax.tree.map(lambda x, y: y if x is None else x, trained, frozen, is_leaf=lambda x: x is None)


def without_frozen_layers(grads: GPT2, config: FinetuneConfig) -> GPT2:
    """Gradients with 0 for the layers that are frozen: neither their norm nor the optimizer sees these."""
    if config.freeze_layers == 0:
        return grads
    live = np.arange(grads.config.n_layer) >= config.freeze_layers
    of_layers = lambda name, g: jnp.where(_along_layers(live, g), g, 0) if name.startswith("h.") else g
    return jax.tree.map(of_layers, parameter_names(grads), grads)


def at_rates(updates: GPT2, config: FinetuneConfig) -> GPT2:
    """Updates times each parameter's share of the learning rate, which for layers that are frozen is 0."""
    if config.freeze_layers == 0 and config.layer_decay == 1:
        return updates
    n_layer = updates.config.n_layer
    layers = config.layer_decay ** np.arange(n_layer, 0, -1.0)
    layers[: config.freeze_layers] = 0

    def scaled(name: str, u: jax.Array) -> jax.Array:
        if name.startswith("h."):
            return u * _along_layers(layers, u)
        return u * config.layer_decay ** (n_layer + 1) if name.startswith(("wte.", "wpe.")) else u

    return jax.tree.map(scaled, parameter_names(updates), updates)


def _along_layers(values: np.ndarray, x: Any) -> jax.Array:
    """[L] -> [L, 1, ...], as many axes as `x`; numbers in its dtype."""
    values = values if values.dtype == bool else values.astype(x.dtype)
    return jnp.asarray(values).reshape(-1, *(1,) * (x.ndim - 1))

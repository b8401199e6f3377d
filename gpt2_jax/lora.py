"""Low-rank adapters (Hu et al., 2021): `x @ W + b + scale * (drop(x) @ A) @ B`, of which A and B alone are trained.

A model with adapters is a `GPT2` like any other: its linear layers have `lora_a` [I, R] and `lora_b` [R, *O] beside
their kernel, of stacked blocks [L, I, R] and [L, R, *O]. The kernels' sums with the products are made by `merge` alone,
never in a training step, which needs no gradient of a kernel then.
"""

import math
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.errors import InputError, shown
from gpt2_jax.layers import Adaptable, Adapter
from gpt2_jax.model import GPT2, LINEARS, parameter_names
from gpt2_jax.training.finetune_options import ADAPTERS, FinetuneConfig, LoraConfig
from gpt2_jax.training.selection import split

NAMES = [f"h.{part}.{name}" for part, name in LINEARS]  # by which targets are meant, whatever the layer


def attach(model: GPT2, config: LoraConfig, key: jax.Array) -> GPT2:
    """The model with adapters that change nothing yet: A is random, as PEFT draws it, and B zero.

    Args:
      model: stacked or not; stays as it is.
      config: as the class says.
      key: of A, which is the same for a stacked model and an unstacked one.

    Raises:
      InputError: no layer matches `targets`, or no parameter `also_train`; the rank is 0 or above a kernel's sides; or
        there are adapters already.
    """
    targets = [name for name in NAMES if re.search(config.targets, name)]
    if not targets:
        raise InputError(f"lora.targets is {shown(config.targets)}, which is found in no name of {', '.join(NAMES)}")
    if config.rank < 1:
        raise InputError(f"lora.rank is {config.rank}; adapters need at least 1")
    check_bare(model)
    there = {re.sub(r"^h\.\d+\.", "h.", name) for name in jax.tree.leaves(parameter_names(model))}
    if config.also_train and not any(re.search(config.also_train, name) for name in there):
        raise InputError(
            f"lora.also_train is {shown(config.also_train)}, which is found in no parameter's name; the names are "
            f"{', '.join(sorted(there))}"
        )
    copy, layers = _copy(model), model.config.n_layer
    keys = {name: jax.random.split(jax.random.fold_in(key, i), layers) for i, name in enumerate(NAMES)}
    for name, layer, linear in linears(copy):
        if name not in targets:
            continue
        I, *O = kernel_shape(linear)[layer is None :]
        if config.rank > (most := min(I, math.prod(O))):
            raise InputError(f"lora.rank is {config.rank}; it must be at most {most}, the smaller side of {name}")
        draw = lambda key, I=I: jax.random.uniform(key, (I, config.rank), minval=-(I**-0.5), maxval=I**-0.5)
        a = jax.vmap(draw)(keys[name]) if layer is None else draw(keys[name][layer])
        put(linear, Adapter(config.scale, config.dropout), a, jnp.zeros((*a.shape[:-2], config.rank, *O)))
    return copy


def put(linear: Adaptable, adapter: Adapter, a: jax.Array, b: jax.Array) -> None:
    """Gives a layer its adapter."""
    linear.adapter, linear.lora_a, linear.lora_b = adapter, nnx.Param(a), nnx.Param(b)


def merge(model: GPT2) -> GPT2:
    """The model with its adapters added to its kernels, and without adapters; itself, if it has none."""
    if not is_attached(model):
        return model
    copy = _copy(model)
    for _, _, linear in linears(copy):
        if linear.adapter is None:
            continue
        product = linear.product()  # [I, *O], of a stack [L, I, *O]
        if hasattr(linear, "weight"):
            linear.weight = nnx.Param(linear.weight[...] + jnp.moveaxis(product, 0, -1))
        else:
            linear.kernel = nnx.Param(linear.kernel[...] + product)
        del linear.adapter, linear.lora_a, linear.lora_b
    return copy


def adapters(model: GPT2) -> GPT2:
    """The adapters' parameters alone: the model with None in place of all others.

    Raises:
      InputError: it has no adapters.
    """
    return split(model, FinetuneConfig(train=ADAPTERS))[0]


def is_attached(model: GPT2) -> bool:
    """Whether the model has adapters."""
    return any(linear.adapter is not None for _, _, linear in linears(model))


def check_bare(model: GPT2) -> None:
    """Raises `InputError` if the model has adapters."""
    if is_attached(model):
        raise InputError("the model has adapters already; merge them first (lora.merge)")


def dropout_of(model: GPT2) -> float:
    """The highest dropout of its adapters."""
    return max((linear.adapter.dropout for _, _, linear in linears(model) if linear.adapter is not None), default=0.0)


def linears(model: GPT2) -> Iterator[tuple[str, int | None, Adaptable]]:
    """(name, number of the layer or None for a stack, layer) of all that may have adapters."""
    blocks = enumerate(model.h) if isinstance(model.h, nnx.List) else [(None, model.h)]
    for layer, block in blocks:
        for part, name in LINEARS:
            yield f"h.{part}.{name}", layer, getattr(getattr(block, part), name)


def kernel_shape(linear: Adaptable) -> tuple[int, ...]:
    """`[I, *O]`, or `[L, I, *O]` of a stack."""
    if hasattr(linear, "weight"):
        shape = linear.weight[...].shape
        return (shape[-1], *shape[:-1])
    return linear.kernel[...].shape


def _copy(model: GPT2) -> GPT2:
    return jax.tree.unflatten(jax.tree.structure(model), jax.tree.leaves(model))

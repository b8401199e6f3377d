"""The optimizers, from optax, with one decay mask and one course of the learning rate for all of them.

All see float32 parameters and gradients, take steps of about the size of Adam's at the same learning rate (Lion's are
larger, see `OptimizerConfig`), and multiply the decay by the learning rate.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gpt2_jax.config import OptimizerConfig
from gpt2_jax.model import GPT2, parameter_name, parameter_names

MIN_FACTORED = 32  # matrices with a smaller side keep their second moments whole: nothing much is saved
MUON_RMS = 0.2  # root mean square of Muon's updates, that of Adam's in practice (Liu et al., 2025, section 2.2)
MATRICES = r"^h\..*kernel$"  # what Muon makes orthogonal: the blocks' kernels, [L, I, O] or [L, I, 3, O]


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate at steps 0 to `steps` - 1: a linear warm-up from 0, then what `config.schedule` names."""
    peak, final, warmup = config.learning_rate, config.final_learning_rate, config.warmup_steps
    rest = max(1, steps - 1 - warmup)  # from the peak at step `warmup` to the last step
    # Warm-up reaches the peak at step `warmup` and step 0 already learns.
    rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    match config.schedule:
        case "cosine":
            course = optax.cosine_decay_schedule(peak, rest, alpha=final / peak)
        case "linear":
            course = _at_least(final, optax.linear_schedule(peak, final, rest))
        case "constant":
            course = optax.constant_schedule(peak)
        case "wsd":
            decay = min(rest, max(1, round(config.decay_fraction * steps)))
            course = _at_least(final, optax.linear_schedule(peak, final, decay, transition_begin=rest - decay))
    return optax.join_schedules([rise, course], [warmup])


def _at_least(final: float, schedule: optax.Schedule) -> optax.Schedule:
    """The schedule without what rounding takes from its end: a rate below 0 would climb."""
    return lambda count: jnp.maximum(schedule(count), final)


def decay_mask(model: GPT2, pattern: str) -> GPT2:
    """A tree of bools: True where a parameter's name matches. Names, not ranks: stacked biases have two dimensions."""
    return jax.tree.map(lambda name: re.search(pattern, name) is not None, parameter_names(model))


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then the optimizer that `config.name` says, on the schedule."""
    clip = clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    tx = OPTIMIZERS[config.name](config, make_schedule(config, steps))
    return optax.chain(clip, tx if config.moments_dtype == "float32" else moments_in(jnp.bfloat16, tx))


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """Scales all gradients by one factor, so that their norm together is at most `largest`.

    `optax.clip_by_global_norm` divides by the norm instead, which XLA on CPU does in a pass of its own over them. Who
    knows the norm gives it to `update` as `grad_norm`, and saves another pass.
    """

    def clip(
        updates: GPT2, state: optax.EmptyState, _: GPT2 | None = None, *, grad_norm: jax.Array | None = None, **__: Any
    ) -> tuple[GPT2, optax.EmptyState]:
        factor = jnp.minimum(1.0, largest / (optax.tree.norm(updates) if grad_norm is None else grad_norm))
        return jax.tree.map(lambda x: x * factor, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, clip)


def adamw(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter, 2019)."""
    return optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=lambda model: decay_mask(model, config.decay_pattern),
    )


def lion(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Lion (Chen et al., 2023): the sign of a momentum."""
    return optax.lion(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        weight_decay=config.weight_decay,
        mask=lambda model: decay_mask(model, config.decay_pattern),
    )


def adafactor(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern, 2018) as Zhai et al. (2021) use it: no momentum, steps not scaled by parameters.

    `optax.adafactor` itself adds the decay after the learning rate, so that 0.1 would be a tenth of a weight a step.
    """
    # With the paper's 1e-30 in place of eps, what has no gradient but rounding errors, as the biases of keys do (the
    # softmax cancels them), would take steps as large as all else.
    second_moments = optax.scale_by_factored_rms(
        min_dim_size_to_factor=MIN_FACTORED,
        epsilon=config.eps**2,
        decay_rate_fn=lambda step, exponent: jnp.minimum(1 - (step + 1.0) ** -exponent, config.beta2),
    )
    return optax.chain(
        per_layer(optax.chain(second_moments, optax.clip_by_block_rms(1.0))),
        optax.add_decayed_weights(config.weight_decay, lambda model: decay_mask(model, config.decay_pattern)),
        optax.scale_by_learning_rate(schedule),
    )


def muon(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan, 2024) for the blocks' matrices, with steps of Adam's size (Liu et al., 2025); Adam for the rest.

    `optax.contrib.muon` itself decays what Adam updates without a mask, and makes that Adam a Nesterov one.
    """
    # Each layer, and each of queries, keys and values, is a matrix of its own: all other axes are batch axes.
    dimensions = lambda tree: jax.tree.map(lambda x: optax.contrib.MuonDimensionNumbers(1, x.ndim - 1), tree)
    size = lambda x: MUON_RMS * math.sqrt(max(x.shape[1], x.shape[-1]))
    orthogonal = optax.chain(
        optax.contrib.scale_by_muon(beta=config.momentum, eps=config.eps, weight_dimension_numbers=dimensions),
        optax.stateless(lambda updates, _: jax.tree.map(lambda x: size(x) * x, updates)),
    )
    adam = optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps)
    return optax.chain(
        optax.partition(
            {"muon": orthogonal, "adam": adam},
            lambda model: jax.tree.map(lambda matrix: "muon" if matrix else "adam", decay_mask(model, MATRICES)),
        ),
        optax.add_decayed_weights(config.weight_decay, lambda model: decay_mask(model, config.decay_pattern)),
        optax.scale_by_learning_rate(schedule),
    )


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, optax.Schedule], optax.GradientTransformation]] = {
    "adamw": adamw,
    "adafactor": adafactor,
    "lion": lion,
    "muon": muon,
}


def per_layer(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` with each layer of the stacked blocks a parameter of its own.

    So that neither the axis of layers is ever factored, however many there are, nor their sizes mixed.
    """

    def init(model: GPT2) -> Any:
        stack, rest = split(model)
        return {"h": jax.vmap(tx.init)(stack), "rest": tx.init(rest)}

    def update(grads: GPT2, state: Any, model: GPT2 | None = None) -> tuple[GPT2, Any]:
        (stack, rest), (stacked_model, rest_of_model) = split(grads), split(model)
        stack, stacked_state = jax.vmap(tx.update)(stack, state["h"], stacked_model)
        rest, rest_state = tx.update(rest, state["rest"], rest_of_model)
        leaves = {**stack, **rest}
        names = jax.tree.leaves(parameter_names(grads))
        updates = jax.tree.unflatten(jax.tree.structure(grads), [leaves[name] for name in names])
        return updates, {"h": stacked_state, "rest": rest_state}

    def split(tree: GPT2) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        leaves = {parameter_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
        stack = {name: leaf for name, leaf in leaves.items() if name.startswith("h.")}
        return stack, {name: leaf for name, leaf in leaves.items() if name not in stack}

    return optax.GradientTransformation(init, update)


def moments_in(dtype: Any, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` with its moments `mu` and `nu` kept in `dtype` between steps and float32 within a step."""

    def cast(state: Any, dtype: Any) -> Any:
        is_moment = lambda path: re.search(r"(^|\.)(mu|nu)\.", parameter_name(path))
        return jax.tree_util.tree_map_with_path(lambda path, x: x.astype(dtype) if is_moment(path) else x, state)

    def init(model: GPT2) -> Any:
        return cast(tx.init(model), dtype)

    def update(grads: GPT2, state: Any, model: GPT2 | None = None) -> tuple[GPT2, Any]:
        updates, state = tx.update(grads, cast(state, jnp.float32), model)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(init, update)

"""AdamW, its decay mask and the course of the learning rate."""

import re

import jax
import optax

from gpt2_jax.config import OptimizerConfig
from gpt2_jax.model import GPT2, parameter_names


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
            course = optax.linear_schedule(peak, final, rest)
        case "constant":
            course = optax.constant_schedule(peak)
        case "wsd":
            decay = min(rest, max(1, round(config.decay_fraction * steps)))
            course = optax.linear_schedule(peak, final, decay, transition_begin=rest - decay)
    return optax.join_schedules([rise, course], [warmup])


def decay_mask(model: GPT2, pattern: str) -> GPT2:
    """A tree of bools: True where a parameter's name matches. Names, not ranks: stacked biases have two dimensions."""
    return jax.tree.map(lambda name: re.search(pattern, name) is not None, parameter_names(model))


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW (Loshchilov & Hutter, 2019) on the schedule."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    adamw = optax.adamw(
        make_schedule(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=lambda model: decay_mask(model, config.decay_pattern),
    )
    return optax.chain(clip, adamw)

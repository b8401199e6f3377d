"""From logits to a token: transforms that chain, and the pick. All on [B, V] float32, all settings traced arrays.

Nothing is sorted: both filters keep what lies above a threshold, found by bisection over the 32 bits of a float.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gpt2_jax.errors import InputError

LOWEST = jnp.finfo(jnp.float32).min


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn; changing a value compiles nothing anew.

    Attributes:
      temperature: divides the logits; 0 always takes the most probable token (greedy).
      top_k: only the k most probable tokens may be drawn (Fan et al., 2018); 0 is off.
      top_p: only the most probable tokens that together reach this probability (Holtzman et al., 2020); 1 is off.

    Raises:
      InputError: a negative temperature or top_k, or top_p outside (0, 1].
    """

    temperature: float | jax.Array = 1.0
    top_k: int | jax.Array = 0
    top_p: float | jax.Array = 1.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not isinstance(getattr(self, field.name), (int, float)):
                return  # inside a transform the values are tracers, checked when they were numbers
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; it must be 0 (greedy) or above")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise InputError(f"top_k is {self.top_k}; it must be a whole number, 0 (off) or above")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be in (0, 1], where 1 is off")
        # One type each: to jit, a temperature of 0 and one of 0.7 are otherwise two programs.
        for name, kind in (("temperature", float), ("top_k", int), ("top_p", float)):
            object.__setattr__(self, name, kind(getattr(self, name)))


def pick(logits: jax.Array, sampling: Sampling, keys: jax.Array) -> jax.Array:
    """Draws a token for each row.

    Args:
      logits: float32 [B, V].
      sampling: the settings, scalars.
      keys: one key a row, [B].

    Returns:
      int32 [B].
    """

    def draw() -> jax.Array:
        filtered = transform(logits, sampling)
        return jax.vmap(jax.random.categorical)(keys, filtered).astype(jnp.int32)

    greedy = lambda: jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.lax.cond(jnp.asarray(sampling.temperature) > 0, draw, greedy)


def transform(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Temperature, then top-k, then top-p, the order of `transformers`; what may not be drawn becomes `LOWEST`."""
    # Below 1e-5 every other token's probability underflows anyway, and a smaller divisor could overflow.
    logits = logits / jnp.maximum(sampling.temperature, 1e-5)
    logits = jax.lax.cond(jnp.asarray(sampling.top_k) > 0, lambda: keep_top_k(logits, sampling.top_k), lambda: logits)
    return jax.lax.cond(jnp.asarray(sampling.top_p) < 1, lambda: keep_top_p(logits, sampling.top_p), lambda: logits)


def keep_top_k(logits: jax.Array, k: jax.Array | int) -> jax.Array:
    """Lowers all but the k largest of each row (and those equal to the k-th) to `LOWEST`."""
    return keep_above(logits, lambda kept: kept.sum(-1) >= k)


def keep_top_p(logits: jax.Array, p: jax.Array | float) -> jax.Array:
    """Lowers all but the fewest tokens of each row whose probabilities sum to p or more to `LOWEST`."""
    probabilities = jax.nn.softmax(logits, axis=-1)
    return keep_above(logits, lambda kept: jnp.where(kept, probabilities, 0.0).sum(-1) >= p)


def keep_above(logits: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Keeps the logits at or above the highest threshold at which `enough(kept [B, V]) -> bool [B]` still holds."""
    bits = jax.lax.bitcast_convert_type(jnp.where(logits == 0, 0.0, logits), jnp.uint32)  # -0.0 is no less than 0.0
    sign = jnp.uint32(1 << 31)
    order = jnp.where(bits < sign, bits | sign, ~bits)  # unsigned integers in the order of the floats

    def try_bit(i: jax.Array, threshold: jax.Array) -> jax.Array:
        candidate = threshold | (sign >> i.astype(jnp.uint32))
        return jnp.where(enough(order >= candidate[:, None]), candidate, threshold)

    threshold = jax.lax.fori_loop(0, 32, try_bit, jnp.zeros(len(logits), jnp.uint32))
    return jnp.where(order >= threshold[:, None], logits, LOWEST)

"""Which tokens may be drawn: filters on float32 [B, V] that lower all the others to `LOWEST`.

Nothing is sorted: a filter keeps what lies above a threshold, found by bisection over the 32 bits of a float. Each
keeps at least the `at_least` most probable tokens (a whole number known when compiling).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gpt2_jax.generation.logits import LOWEST


def keep_top_k(logits: jax.Array, k: jax.Array | int, at_least: int = 1) -> jax.Array:
    """Keeps the k largest of each row, and those equal to the k-th (Fan et al., 2018)."""
    k = jnp.maximum(k, at_least)
    return keep_above(logits, lambda kept: kept.sum(-1) >= k)


def keep_top_p(logits: jax.Array, p: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps the fewest tokens of each row whose probabilities sum to p or more (Holtzman et al., 2020)."""
    probabilities = jax.nn.softmax(logits, axis=-1)
    return keep_above(
        logits, lambda kept: (jnp.where(kept, probabilities, 0.0).sum(-1) >= p) & (kept.sum(-1) >= at_least)
    )


def keep_min_p(logits: jax.Array, p: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps tokens of at least `p` times the highest probability."""
    return _keep(logits, logits >= logits.max(-1, keepdims=True) + jnp.log(p), at_least)


def keep_typical(logits: jax.Array, p: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps the tokens whose information is nearest to the entropy, until they reach probability `p`.

    Meister et al. (2022), locally typical sampling.
    """
    log_p = jax.nn.log_softmax(logits, axis=-1)
    probabilities = jnp.exp(log_p)
    entropy = -jnp.where(probabilities > 0, probabilities * log_p, 0.0).sum(-1, keepdims=True)
    nearness = -jnp.abs(log_p + entropy)
    nearest = keep_above(
        nearness, lambda kept: (jnp.where(kept, probabilities, 0.0).sum(-1) >= p) & (kept.sum(-1) >= at_least)
    )
    return jnp.where(nearest > LOWEST, logits, LOWEST)


def keep_epsilon(logits: jax.Array, epsilon: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps tokens of probability `epsilon` or more (Hewitt et al., 2022)."""
    return _keep(logits, jax.nn.softmax(logits, axis=-1) >= epsilon, at_least)


def keep_eta(logits: jax.Array, epsilon: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps tokens of probability min(epsilon, sqrt(epsilon) exp(-entropy)) or more (Hewitt et al., 2022)."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    probabilities = jnp.exp(log_p)
    entropy = -jnp.where(probabilities > 0, probabilities * log_p, 0.0).sum(-1, keepdims=True)
    return _keep(logits, probabilities >= jnp.minimum(epsilon, jnp.sqrt(epsilon) * jnp.exp(-entropy)), at_least)


def _keep(logits: jax.Array, kept: jax.Array, at_least: int) -> jax.Array:
    return jnp.where(kept | (logits >= jax.lax.top_k(logits, at_least)[0][:, -1:]), logits, LOWEST)


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

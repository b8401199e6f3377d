"""Which tokens may be drawn: filters on float32 [B, V] that lower all the others to `LOWEST`.

Nothing is sorted: a filter keeps what lies above a threshold, found by bisection over the floats in their order. Each
keeps at least the `at_least` most probable tokens (a whole number known when compiling).
"""

import jax
import jax.numpy as jnp

from gpt2_jax.generation.logits import LOWEST

ROUNDING = 1e-6  # what float32 sums of V probabilities resolve


def keep_top_k(logits: jax.Array, k: jax.Array | int, at_least: int = 1) -> jax.Array:
    """Keeps the k largest of each row, and those equal to the k-th (Fan et al., 2018)."""
    floor = _floor(logits, 1.0, jnp.maximum(k, at_least), smallest=lambda _: 1.0)
    return jnp.where(logits >= floor[:, None], logits, LOWEST)


def keep_top_p(logits: jax.Array, p: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps the fewest tokens of each row whose probabilities sum to p or more (Holtzman et al., 2020)."""
    odds = _odds(logits)
    floor = _floor(odds, odds, p * odds.sum(-1), smallest=lambda threshold: threshold)
    return _keep(logits, odds >= floor[:, None], at_least)


def keep_min_p(logits: jax.Array, p: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps tokens of at least `p` times the highest probability."""
    return _keep(logits, logits >= logits.max(-1, keepdims=True) + jnp.log(p), at_least)


def keep_typical(logits: jax.Array, p: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps the tokens whose information is nearest to the entropy, until they reach probability `p`.

    Meister et al. (2022), locally typical sampling.
    """
    log_p, entropy = _information(logits)
    nearness = -jnp.abs(log_p + entropy)
    floor = _floor(nearness, jnp.exp(log_p), jnp.full(len(logits), p), smallest=lambda _: 0.0)
    kept = (nearness >= floor[:, None]) | (nearness >= _largest(nearness, at_least))
    return jnp.where(kept, logits, LOWEST)


def keep_epsilon(logits: jax.Array, epsilon: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps tokens of probability `epsilon` or more (Hewitt et al., 2022)."""
    return _keep(logits, jax.nn.softmax(logits, axis=-1) >= epsilon, at_least)


def keep_eta(logits: jax.Array, epsilon: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps tokens of probability min(epsilon, sqrt(epsilon) exp(-entropy)) or more (Hewitt et al., 2022)."""
    log_p, entropy = _information(logits)
    eta = jnp.minimum(epsilon, jnp.sqrt(epsilon) * jnp.exp(-entropy))
    return _keep(logits, jnp.exp(log_p) >= eta, at_least)


def _odds(logits: jax.Array) -> jax.Array:
    """Probabilities relative to the highest of the row."""
    return jnp.exp(logits - logits.max(-1, keepdims=True))


def _information(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities [B, V] and their entropy in nats [B, 1]."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    return log_p, -jnp.where(p > 0, p * log_p, 0.0).sum(-1, keepdims=True)


def _keep(logits: jax.Array, kept: jax.Array, at_least: int) -> jax.Array:
    return jnp.where(kept | (logits >= _largest(logits, at_least)), logits, LOWEST)


def _largest(values: jax.Array, n: int) -> jax.Array:
    """The n-th largest of each row [B, 1]."""
    return values.max(-1, keepdims=True) if n == 1 else jax.lax.top_k(values, n)[0][:, -1:]


def _floor(values, weights, target, smallest) -> jax.Array:
    """The highest threshold, float32 [B], at or above which the weights of `values` [B, V] sum to `target` or more.

    -inf where all together do not. A row is done, too, when its sum is above the target by no more than rounding, or
    when fewer than two values are left between the bounds: `smallest(threshold)` is the least weight that a value at
    or above it may have.
    """

    def above(threshold: jax.Array) -> jax.Array:
        return jnp.where(values >= threshold[:, None], weights, 0.0).sum(-1)

    def undone(carry) -> jax.Array:
        low, high, above_low, above_high = carry
        near = (above_low - target <= ROUNDING * target) | (above_low - above_high < 2 * smallest(_float(low)))
        return (low + 1 < high) & ~near  # the difference may overflow

    def halve(carry):
        low, high, above_low, above_high = carry
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        sums = above(_float(middle))
        up = sums >= target
        return (
            jnp.where(up, middle, low),
            jnp.where(up, high, middle),
            jnp.where(up, sums, above_low),
            jnp.where(up, above_high, sums),
        )

    B = len(values)
    low = jnp.full(B, _ordered(jnp.float32(-jnp.inf)))
    high = _ordered(values.max(-1)) + 1
    carry = low, high, jnp.full(B, jnp.inf), jnp.zeros(B)
    return _float(jax.lax.while_loop(lambda carry: undone(carry).any(), halve, carry)[0])


def _ordered(x: jax.Array) -> jax.Array:
    """float32 to int32 in the same order."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _float(ordered: jax.Array) -> jax.Array:
    """The inverse of `_ordered`."""
    return jax.lax.bitcast_convert_type(jnp.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered), jnp.float32)

"""Which tokens may be drawn: filters on float32 [B, V] that lower all the others to `LOWEST`.

Nothing is sorted: a filter keeps what lies above a threshold, found by bisection over the floats in their order. Each
keeps at least the `at_least` most probable tokens (a whole number known when compiling). The settings are one for all
rows, or [B].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gpt2_jax.generation.logits import LOWEST, of_rows

ROUNDING = 1e-6  # what float32 sums of V probabilities resolve
BLOCK = 128


def keep_top_k(logits: jax.Array, k: jax.Array | int, at_least: int = 1) -> jax.Array:
    """Keeps the k largest of each row, and those equal to the k-th (Fan et al., 2018)."""
    maxima, k = blocks(logits).max(-1), jnp.maximum(k, at_least)
    low = jnp.where(k <= maxima.shape[1], maxima.min(-1), -jnp.inf)  # each block has one token at least above it
    floor = _floor(logits, 1.0, k, low, smallest=lambda _: 1.0)
    return jnp.where(logits >= floor[:, None], logits, LOWEST)


def keep_top_p(logits: jax.Array, p: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps the fewest tokens of each row whose probabilities sum to p or more (Holtzman et al., 2020)."""
    odds = _odds(logits)
    target = p * odds.sum(-1)
    floor = _floor(odds, odds, target, ROUNDING * target / odds.shape[1], smallest=lambda threshold: threshold)
    return _keep(logits, odds >= floor[:, None], at_least)


def keep_min_p(logits: jax.Array, p: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps tokens of at least `p` times the highest probability."""
    return _keep(logits, logits >= logits.max(-1, keepdims=True) + jnp.log(of_rows(p)), at_least)


def keep_typical(logits: jax.Array, p: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps the tokens whose information is nearest to the entropy, until they reach probability `p`.

    Meister et al. (2022), locally typical sampling.
    """
    log_p, entropy = _information(logits)
    nearness = -jnp.abs(log_p + entropy)
    # A token at least so near has a log-probability of at least nearness - entropy.
    smallest = lambda threshold: jnp.exp(threshold - entropy[:, 0])
    floor = _floor(nearness, jnp.exp(log_p), p, jnp.full(len(logits), -jnp.inf), smallest)
    kept = (nearness >= floor[:, None]) | (nearness >= _largest(nearness, at_least))
    return jnp.where(kept, logits, LOWEST)


def keep_epsilon(logits: jax.Array, epsilon: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps tokens of probability `epsilon` or more (Hewitt et al., 2022)."""
    return _keep(logits, jax.nn.softmax(logits, axis=-1) >= of_rows(epsilon), at_least)


def keep_eta(logits: jax.Array, epsilon: jax.Array | float, at_least: int = 1) -> jax.Array:
    """Keeps tokens of probability min(epsilon, sqrt(epsilon) exp(-entropy)) or more (Hewitt et al., 2022)."""
    log_p, entropy = _information(logits)
    epsilon = of_rows(epsilon)
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


def blocks(logits: jax.Array) -> jax.Array:
    """[B, V] as [B, N, BLOCK], the last block filled up with `LOWEST`."""
    B, V = logits.shape
    return jnp.pad(logits, ((0, 0), (0, -V % BLOCK)), constant_values=LOWEST).reshape(B, -1, BLOCK)


def _floor(
    values: jax.Array,
    weights: jax.Array | float,
    target: jax.Array | float,
    low: jax.Array,
    smallest: Callable[[jax.Array], jax.Array | float],
) -> jax.Array:
    """The highest threshold, float32 [B], at or above which the weights of `values` [B, V] sum to `target` or more.

    `low` [B] is one that does, and the answer where none does. A row is done, too, when its sum is above the target by
    no more than rounding, or when fewer than two values are left between the bounds: `smallest(threshold)` is the
    least weight that a value at or above it may have.
    """

    def undone(carry) -> jax.Array:
        low, high, above_low, above_high = carry
        near = (above_low - target <= ROUNDING * target) | (above_low - above_high < 2 * smallest(_float(low)))
        return (low + 1 < high) & ~near  # their difference may overflow

    def halve(carry):
        low, high, above_low, above_high = carry
        middle = (low >> 1) + (high >> 1) + (low & high & 1)
        above = jnp.where(values >= _float(middle)[:, None], weights, 0.0).sum(-1)
        up = above >= target
        return (
            jnp.where(up, middle, low),
            jnp.where(up, high, middle),
            jnp.where(up, above, above_low),
            jnp.where(up, above_high, above),
        )

    carry = _ordered(low), _ordered(values.max(-1)) + 1, jnp.full(len(low), jnp.inf), jnp.zeros(len(low))
    return _float(jax.lax.while_loop(lambda carry: undone(carry).any(), halve, carry)[0])


def _ordered(x: jax.Array) -> jax.Array:
    """float32 to int32 in the same order."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _float(ordered: jax.Array) -> jax.Array:
    """The inverse of `_ordered`."""
    return jax.lax.bitcast_convert_type(jnp.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered), jnp.float32)

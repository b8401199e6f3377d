"""One token of each row from its logits: the most probable one, or a draw. Vocabularies are read in blocks.

Measured on CPU for 8 rows of GPT-2's vocabulary: XLA's argmax takes 0.5 ms and a maximum 0.1, a random number for each
logit (the Gumbel trick) 11 ms, and a sort 120.
"""

import jax
import jax.numpy as jnp

from gpt2_jax.generation.filters import BLOCK, blocks
from gpt2_jax.generation.logits import LOWEST, of_rows

FEW = 64  # blocks


def most_probable(logits: jax.Array) -> jax.Array:
    """The first of the largest logits of each row: float32 [B, V] -> int32 [B]."""
    parts = blocks(logits)
    block = jnp.argmax(parts.max(-1), axis=-1)
    return (block * BLOCK + jnp.argmax(_part(parts, block), axis=-1)).astype(jnp.int32)


def draw(logits: jax.Array, uniforms: jax.Array) -> jax.Array:
    """A token of each row by the inverse of its distribution; one of probability 0 never.

    First a block of tokens, then one inside it, each by its own uniform number: a single one has steps of 2^-23, more
    than the probability of a rare token.

    Args:
      logits: float32 [B, V].
      uniforms: float32 [B, 2] in [0, 1).

    Returns:
      int32 [B].
    """
    parts = blocks(logits)
    odds = jnp.exp(parts - parts.max((1, 2), keepdims=True))
    block = _choose(odds.sum(-1), uniforms[:, 0])
    return block * BLOCK + _choose(_part(odds, block), uniforms[:, 1])


def best_blocks(logits: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The `FEW` blocks of highest maxima, in their order, int32 [B, FEW]; whether they hold the k most probable tokens.

    k, [] or [B], is from 1 to `FEW`. Only ties of the k-th token, or bans of nearly all, make them too few.
    """
    maxima, chosen = jax.lax.top_k(blocks(logits).max(-1), FEW + 1)
    others, kth = maxima[:, FEW], jnp.take_along_axis(maxima, of_rows(k) - 1, axis=1)[:, 0]
    return jnp.sort(chosen[:, :FEW], axis=-1), ((others < kth) | (others <= LOWEST)).all()


def within(logits: jax.Array, chosen: jax.Array) -> jax.Array:
    """The logits of the `chosen` blocks alone, [B, FEW * BLOCK]."""
    return jnp.take_along_axis(blocks(logits), chosen[:, :, None], axis=1).reshape(len(logits), -1)


def without(tokens: jax.Array, chosen: jax.Array) -> jax.Array:
    """Places in `within`, int32 [B], as tokens of the vocabulary."""
    block = jnp.take_along_axis(chosen, tokens[:, None] // BLOCK, axis=1)[:, 0]
    return block * BLOCK + tokens % BLOCK


def _part(parts: jax.Array, block: jax.Array) -> jax.Array:
    """Of [B, N, BLOCK] the `block` [B] of each row, [B, BLOCK]."""
    return jnp.take_along_axis(parts, block[:, None, None], axis=1)[:, 0]


def _choose(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """The index at which the running sum of `weights` [B, any] passes `uniform` [B] of the total, int32 [B]."""
    # Rounding may leave a running sum a little below an earlier one; where the weight is 0 it counts for nothing.
    running = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), 0.0)
    return jnp.argmax(running > (uniform * running.max(-1))[:, None], axis=-1).astype(jnp.int32)

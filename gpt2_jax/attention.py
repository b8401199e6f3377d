"""Attention over heads, and the cache of keys and values that decoding carries.

Axes: B batch, T query length, S key length, H heads, K head size.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of one layer, each [B, H, S, K]; updated in place when donated or carried by a loop."""

    keys: jax.Array
    values: jax.Array

    @classmethod
    def empty(cls, batch: int, heads: int, slots: int, head_size: int, dtype: jnp.dtype) -> "KVCache":
        zeros = jnp.zeros((batch, heads, slots, head_size), dtype)
        return cls(zeros, zeros)

    def write(self, keys: jax.Array, values: jax.Array, slot: jax.Array | int) -> "KVCache":
        """Puts keys and values [B, H, T, K] into slots `slot` ... `slot + T - 1`, which must exist."""
        put = lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part.astype(whole.dtype), slot, axis=2)
        return KVCache(put(self.keys, keys), put(self.values, values))


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: jax.Array | float,
    mask: jax.Array,
    *,
    upcast: bool = False,
    on_weights: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al., 2017) with the softmax in float32.

    Args:
      q: [B, H, T, K].
      k, v: [B, H, S, K].
      scale: factor of the scores.
      mask: bool, broadcastable to [B, H, T, S]; True = attend. Each row needs one True.
      upcast: multiply q with k in float32 even if they are bfloat16.
      on_weights: applied to the float32 weights [B, H, T, S] after the softmax (dropout).

    Returns:
      [B, H, T, K] in v's dtype.
    """
    if upcast:
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    scores = jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = on_weights(jax.nn.softmax(scores, axis=-1)).astype(v.dtype)
    return jnp.einsum("bhts,bhsk->bhtk", weights, v)

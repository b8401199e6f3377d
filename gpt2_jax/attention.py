"""Attention over heads, and the cache of keys and values that decoding carries.

Axes: B batch, T query length, S key length, H heads, K head size.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gpt2_jax.layers import drop

QUERY_BLOCK = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KVCache:
    """Keys and values of one layer, each [B * H, S, K]; updated in place when donated or carried by a loop.

    Batch and heads are one axis: of a batch of one, XLA on CPU would reshape the cache between the write and the
    product, and copy it for that.
    """

    keys: jax.Array
    values: jax.Array

    @classmethod
    def of(cls, keys: jax.Array, values: jax.Array, slots: int) -> "KVCache":
        """A cache of `slots` that begins with keys and values [B, H, T, K]."""
        T, K = keys.shape[2:]
        pad = lambda x: jnp.pad(x.reshape(-1, T, K), ((0, 0), (0, slots - T), (0, 0)))
        return cls(pad(keys), pad(values))

    @property
    def slots(self) -> int:
        return self.keys.shape[1]

    def write(self, keys: jax.Array, values: jax.Array, slot: jax.Array | int) -> "KVCache":
        """Puts keys and values [B, H, T, K] into slots `slot` ... `slot + T - 1`, which must exist."""

        def put(whole: jax.Array, part: jax.Array) -> jax.Array:
            part = part.reshape(-1, *part.shape[2:]).astype(whole.dtype)
            return jax.lax.dynamic_update_slice_in_dim(whole, part, slot, axis=1)

        return KVCache(put(self.keys, keys), put(self.values, values))

    def select(self, rows: jax.Array, batch: int) -> "KVCache":
        """The cache of `rows` (int [B'], repeats allowed) of the `batch`."""
        pick = lambda x: x.reshape(batch, -1, *x.shape[1:])[rows].reshape(-1, *x.shape[1:])
        return KVCache(pick(self.keys), pick(self.values))

    def reorder(self, rows: jax.Array, start: int) -> "KVCache":
        """The slots from `start` on become those of `rows` (int [B]); the ones before stay, in place."""
        new = KVCache(self.keys[:, start:], self.values[:, start:]).select(rows, len(rows))
        put = lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis=1)
        return KVCache(put(self.keys, new.keys), put(self.values, new.values))


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: jax.Array | float,
    mask: jax.Array,
    *,
    upcast: bool = False,
    keep: jax.Array | None = None,
    rate: float = 0.0,
) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al., 2017) with the softmax in float32.

    Args:
      q: [B, H, T, K].
      k, v: [B, H, S, K].
      scale: factor of the scores.
      mask: bool, broadcastable to [B, H, T, S]; True = attend. Each row needs one True.
      upcast: multiply q with k in float32 even if they are bfloat16.
      keep: bool [B, H, T, S], the weights that a dropout of `rate` leaves; None: all.

    Returns:
      [B, H, T, K] in v's dtype.
    """
    if upcast:
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    scores = jnp.einsum("bhtk,bhsk->bhts", q, k, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    if keep is not None:
        weights = drop(weights, keep, rate)
    return jnp.einsum("bhts,bhsk->bhtk", weights.astype(v.dtype), v)


def attend_causally(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: jax.Array | float,
    mask: jax.Array | None = None,
    *,
    keep: jax.Array | None = None,
    block: int | None = None,
    **options,
) -> jax.Array:
    """`attend` where each of T queries sees the keys up to its own, of those that `mask` leaves, [B, H, T, K] each.

    Blocks of queries (of `block`, `QUERY_BLOCK` by default) leave out the keys that none of them sees: nearly half of
    the work on a long sequence.
    """
    T, parts, block = q.shape[2], [], block or QUERY_BLOCK
    for start in range(0, T, block):
        end = min(T, start + block)
        seen = jnp.arange(end) <= jnp.arange(start, end)[:, None]  # [T', S']
        if mask is not None:
            seen &= mask[..., start:end, :end]
        kept = None if keep is None else keep[:, :, start:end, :end]
        parts.append(attend(q[:, :, start:end], k[:, :, :end], v[:, :, :end], scale, seen, keep=kept, **options))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=2)


def attend_cached(q: jax.Array, cache: KVCache, scale: jax.Array | float, mask: jax.Array, **options) -> jax.Array:
    """`attend` of q [B, H, T, K] over a cache, mask [B, T, S]."""
    B, H, T, K = q.shape
    mask = jnp.broadcast_to(mask[:, None], (B, H, T, cache.slots)).reshape(1, B * H, T, -1)
    y = attend(q.reshape(1, B * H, T, K), cache.keys[None], cache.values[None], scale, mask, **options)
    return y.reshape(B, H, T, K)

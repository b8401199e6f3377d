"""Attention over heads, and the cache of keys and values that decoding carries.

Axes: B batch, T query length, S key length, H heads, K head size.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from gpt2_jax.layers import drop

QUERY_BLOCK = 128


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
        """How many positions it has room for."""
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


def attend(q: jax.Array, k: jax.Array, v: jax.Array, scale: jax.Array | float, mask: jax.Array, **options) -> jax.Array:
    """Scaled dot-product attention (Vaswani et al., 2017) with the softmax in float32.

    Args:
      q: [B, H, T, K].
      k, v: [B, H, S, K].
      scale: factor of the scores.
      mask: bool, broadcastable to [B, H, T, S]; True = attend. Each row needs one True.
      **options: see `_attend`.

    Returns:
      [B, H, T, K] in v's dtype.
    """
    return _attend(q, k, v, scale, mask, **options)[0]


def _attend(q, k, v, scale, mask, *, upcast: bool = False, keep: jax.Array | None = None, rate: float = 0.0):
    """`attend`, and the logarithms of the softmax's sums, float32 [B, H, T].

    Args:
      upcast: multiply q with k in float32 even if they are bfloat16.
      keep: bool [B, H, T, S], the weights that a dropout of `rate` leaves; None: all.
    """
    if upcast:
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    scores = _einsum("bhtk,bhsk->bhts", q, k) * scale
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp(scores - largest)
    sums = weights.sum(-1, keepdims=True)
    if keep is not None:
        weights = drop(weights, keep, rate)
    y = _einsum("bhts,bhsk->bhtk", weights.astype(v.dtype), v) / sums
    return y.astype(v.dtype), (largest + jnp.log(sums))[..., 0]


def attend_causally(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    scale: jax.Array | float,
    mask: jax.Array | None = None,
    *,
    keep: jax.Array | None = None,
    rate: float = 0.0,
    block: int | None = None,
    upcast: bool = False,
) -> jax.Array:
    """`attend` where each of T queries sees the keys up to its own, of those that `mask` leaves, [B, H, T, K] each.

    Blocks of queries (of `block`, `QUERY_BLOCK` by default) leave out the keys that none of them sees: nearly half of
    the work on a long sequence. For the gradient the weights are made again, as in flash attention (Dao et al., 2022):
    what is kept is named "attention" for `jax.checkpoint`, the result and a number a query.
    """
    return _attend_causally(q, k, v, scale, mask, keep, rate, block or QUERY_BLOCK, upcast)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _attend_causally(q, k, v, scale, mask, keep, rate, block, upcast):
    return _forward(q, k, v, scale, mask, keep, rate, block, upcast)[0]


def _forward(q, k, v, scale, mask, keep, rate, block, upcast):
    T, ys, log_sums = q.shape[2], [], []
    for start in range(0, T, block):
        end = min(T, start + block)
        seen = jnp.arange(end) <= jnp.arange(start, end)[:, None]  # [T', S']
        if mask is not None:
            seen &= mask[..., start:end, :end]
        kept = None if keep is None else keep[:, :, start:end, :end]
        q_, k_, v_ = q[:, :, start:end], k[:, :, :end], v[:, :, :end]
        y, log_sum = _attend(q_, k_, v_, scale, seen, keep=kept, rate=rate, upcast=upcast)
        ys.append(y)
        log_sums.append(log_sum)
    y = checkpoint_name(jnp.concatenate(ys, axis=2), "attention")
    log_sums = checkpoint_name(jnp.concatenate(log_sums, axis=2), "attention")
    return y, (q, k, v, scale, mask, keep, y, log_sums)


def _backward(rate, block, upcast, residuals, g):
    # Blocks are of keys, and scores [S, T]: gradients of keys and values are whole, and products contract what lies
    # together, 1.2x faster on CPU.
    q, k, v, scale, mask, keep, y, log_sums = residuals
    T, of_q, of_k, of_v, of_scale = q.shape[2], None, [], [], 0.0
    mask = None if mask is None else mask.swapaxes(-1, -2)
    mean = (g.astype(jnp.float32) * y.astype(jnp.float32)).sum(-1)  # of the weights' gradients, by the weights
    for start in range(0, T, block):
        keys, queries = slice(start, min(T, start + block)), slice(start, T)
        q_, k_, v_, g_ = q[:, :, queries], k[:, :, keys], v[:, :, keys], g[:, :, queries]
        of_row = lambda x, queries=queries: x[:, :, None, queries]  # [B, H, T] -> [B, H, 1, T']
        operands = (k_.astype(jnp.float32), q_.astype(jnp.float32)) if upcast else (k_, q_)
        scores = _einsum("bhsk,bhtk->bhst", *operands)
        seen = jnp.arange(T)[keys, None] <= jnp.arange(start, T)  # [S', T']
        if mask is not None:
            seen &= mask[..., keys, queries]
        weights = jnp.exp(jnp.where(seen, scores * scale - of_row(log_sums), jnp.finfo(jnp.float32).min))
        dropped, of_weights = weights, _einsum("bhsk,bhtk->bhst", v_, g_)
        if keep is not None:
            kept = keep[:, :, queries, keys].swapaxes(2, 3)
            dropped, of_weights = drop(weights, kept, rate), drop(of_weights, kept, rate)
        of_scores = weights * (of_weights - of_row(mean))
        of_scale += (of_scores * scores).sum()
        of_scores = (of_scores * scale).astype(q.dtype)
        of_k.append(_einsum("bhst,bhtk->bhsk", of_scores, q_))
        of_v.append(_einsum("bhst,bhtk->bhsk", dropped.astype(v.dtype), g_))
        part = _einsum("bhks,bhst->bhkt", k_.swapaxes(2, 3), of_scores)
        if of_q is not None:
            part = jax.lax.dynamic_update_slice_in_dim(of_q, of_q[..., queries] + part, start, axis=3)
        of_q = part
    join = lambda parts, like: jnp.concatenate(parts, axis=2).astype(like.dtype)
    return join([of_q.swapaxes(2, 3)], q), join(of_k, k), join(of_v, v), of_scale, None, None


_attend_causally.defvjp(_forward, _backward)


def _einsum(axes: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(axes, *operands, preferred_element_type=jnp.float32)


def attend_cached(q: jax.Array, cache: KVCache, scale: jax.Array | float, mask: jax.Array, **options) -> jax.Array:
    """`attend` of q [B, H, T, K] over a cache, mask [B, T, S]."""
    B, H, T, K = q.shape
    mask = jnp.broadcast_to(mask[:, None], (B, H, T, cache.slots)).reshape(1, B * H, T, -1)
    y = attend(q.reshape(1, B * H, T, K), cache.keys[None], cache.values[None], scale, mask, **options)
    return y.reshape(B, H, T, K)

"""The layers that GPT-2 is built of, as XLA runs them fast on CPU too, in Flax NNX.

Axes: C width, I input, O output, R rank of an adapter, N rows (all leading axes together).
"""

import dataclasses
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P

from gpt2_jax.partitions import mesh_in_force, scattered, spec_of, ways

MANY_ROWS = 256  # from which a product of weights and rows is bound by arithmetic, not by reading the weights


def as_rows(x: jax.Array) -> jax.Array:
    """[..., C] -> [N, C], of which products are fastest on CPU; unless the mesh in force cuts sequences.

    Rows of cut sequences are no even pieces of N, and XLA would gather them.
    """
    return x if ways("sequence") > 1 else x.reshape(-1, x.shape[-1])


@jax.custom_vjp
def add_row(x: jax.Array, row: jax.Array) -> jax.Array:
    """`x [N, O] + row [O]`, N of any number of axes, whose gradient for `row` is summed by a matrix product.

    XLA sums columns on CPU several times slower than its matrix products do.
    """
    return x + row


def _add_row_backward(_, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    return g, _sum_of_rows(g)


def _sum_of_rows(g: jax.Array) -> jax.Array:
    return jnp.ones((g.shape[0],), g.dtype) @ g if g.ndim == 2 else g.sum(range(g.ndim - 1))


add_row.defvjp(lambda x, row: (x + row, None), _add_row_backward)


@jax.custom_vjp
def scale_row(x: jax.Array, row: jax.Array) -> jax.Array:
    """`x [N, O] * row [O]`, with a gradient like that of `add_row`."""
    return x * row


def _scale_row_backward(residuals, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, row = residuals
    return g * row, _sum_of_rows(g * x)


scale_row.defvjp(lambda x, row: (x * row, (x, row)), _scale_row_backward)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes elements with probability `rate` and scales the others up; without a key nothing is dropped."""
    keep = kept(x.shape, rate, key)
    return x if keep is None else drop(x, keep, rate)


def kept(shape: tuple[int, ...], rate: float, key: jax.Array | None) -> jax.Array | None:
    """Which elements a dropout of `rate` leaves, bool of that shape; None: all."""
    return None if key is None or rate == 0.0 else jax.random.bernoulli(key, 1.0 - rate, shape)


def drop(x: jax.Array, keep: jax.Array, rate: float) -> jax.Array:
    """Zeroes elements where `keep` (bool) is False, and scales the others up for the share that is gone."""
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What of a low-rank adapter is not learnt: the factor of its product, and the dropout before it."""

    scale: float
    dropout: float = 0.0


class Adaptable(nnx.Module):
    """A linear layer to which lora.py may attach an adapter, lora_a [I, R] and lora_b [R, *O] (Hu et al., 2021)."""

    adapter: Adapter | None = None

    def adapted(self, y: jax.Array, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """The layer's own y [..., *O] of x [..., I], and what an adapter adds; `key` is of its dropout."""
        if self.adapter is None:
            return y
        if key is not None:
            key = jax.random.fold_in(key, zlib.crc32(self.name.encode()))  # a block's layers share its key
        a, b = self.lora_a[...].astype(self.dtype), self.lora_b[...].astype(self.dtype)
        low = as_rows(dropout(x, self.adapter.dropout, key)) @ a * self.adapter.scale  # [N, R]
        if b.ndim == 2 or ways("model") == 1:  # as in Linear
            b = b.reshape(len(b), -1)
        # As large as y and cheap to make again: with a batch axis, of one, it is none of the products that remat keeps.
        wide = jax.lax.dot_general(low[None], b[None], (((low.ndim,), (1,)), ((0,), (0,))))
        return y + wide.reshape(y.shape)

    def product(self) -> jax.Array:
        """What the adapter adds to the kernel `[I, *O]`, float32; of a stack, to `[L, I, *O]`."""
        a, b = self.lora_a[...], self.lora_b[...]
        matrices = b.reshape(*a.shape[:-2], a.shape[-1], -1)
        matrices = jnp.matmul(a, matrices, precision=jax.lax.Precision.HIGHEST)
        return self.adapter.scale * matrices.reshape(*a.shape[:-1], *b.shape[a.ndim - 1 :])


class Linear(Adaptable):
    """`x @ kernel + bias` over the last axis, kernel `[I, *O]`; the product sees two dimensions, 1.45x faster on CPU.

    `name` is that of a stack of these in a model, by which partitions.py knows the kernel.
    """

    def __init__(self, n_in: int, out: tuple[int, ...], key: jax.Array, *, std: float, dtype: Any, name: str):
        self.kernel = nnx.Param(std * jax.random.normal(key, (n_in, *out)))
        self.bias = nnx.Param(jnp.zeros(out))
        self.dtype = dtype
        self.name = name

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return self.adapted(self._base(x), x, key)

    def _base(self, x: jax.Array) -> jax.Array:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        rows, spec = as_rows(x), P(*spec_of(f"{self.name}.kernel")[1:])
        if kernel.ndim > 2 and ways("model") > 1:
            # Merging axes of which the last is cut would gather the kernel.
            y = jnp.einsum("...i,iko->...ko", rows, scattered(kernel, spec)) + bias
            return y.reshape(*x.shape[:-1], *bias.shape)
        # Its gradient is scattered as a matrix: of [1600, 3, 1600] XLA for TPUs cannot, and sums all of it.
        matrix = scattered(kernel.reshape(kernel.shape[0], -1), spec if kernel.ndim == 2 else P(spec[0]))
        return add_row(rows @ matrix, bias.reshape(-1)).reshape(*x.shape[:-1], *bias.shape)


class TransposedLinear(Adaptable):
    """A `Linear` for decoding: its kernel is stored as `weight` [*O, I].

    Few rows are multiplied from the right, `weight @ x.T`: XLA on CPU then packs the rows, and reads each weight once
    at the memory's speed. *Measured*, 1 row 23 GB/s and 8 rows 17 GB/s, against 18 and 7 for `x @ kernel`.
    """

    def __init__(self, linear: Linear):
        self.weight = nnx.Param(jnp.moveaxis(linear.kernel[...], 0, -1))
        self.bias = nnx.Param(linear.bias[...])
        self.dtype = linear.dtype
        self.name = linear.name
        if linear.adapter is not None:
            self.adapter, self.lora_a, self.lora_b = linear.adapter, linear.lora_a, linear.lora_b

    def __call__(self, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        return self.adapted(self._base(x), x, key)

    def _base(self, x: jax.Array) -> jax.Array:
        weight, bias = self.weight[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        rows, weight = x.reshape(-1, x.shape[-1]), weight.reshape(-1, x.shape[-1])  # [N, I], [O, I]
        if len(rows) < MANY_ROWS:
            # The bias stands between the product and the transpose, or XLA would turn the product around again.
            y = (jnp.einsum("oi,ni->on", weight, rows) + bias.reshape(-1, 1)).T
        else:
            y = jnp.einsum("ni,oi->no", rows, weight) + bias.reshape(-1)
        return y.reshape(*x.shape[:-1], *bias.shape)


class LayerNorm(nnx.Module):
    """Layer normalisation (Ba et al., 2016) with statistics in float32."""

    def __init__(self, width: int, *, epsilon: float, dtype: Any):
        self.scale = nnx.Param(jnp.ones((width,)))
        self.bias = nnx.Param(jnp.zeros((width,)))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        rows = as_rows(x).astype(jnp.float32)  # [N, C]
        rows = rows - rows.mean(-1, keepdims=True)
        rows = rows * jax.lax.rsqrt(jnp.square(rows).mean(-1, keepdims=True) + self.epsilon)
        rows = add_row(scale_row(rows, self.scale[...]), self.bias[...])
        return rows.astype(self.dtype).reshape(x.shape)


class Embedding(nnx.Module):
    """A table [rows, C]; rows from `used` on are padding and stay zero."""

    def __init__(self, rows: int, width: int, key: jax.Array, *, std: float, used: int | None = None):
        table = std * jax.random.normal(key, (rows if used is None else used, width))
        self.embedding = nnx.Param(jnp.pad(table, ((0, rows - table.shape[0]), (0, 0))))


def look_up(table: jax.Array, tokens: jax.Array, name: str) -> jax.Array:
    """The rows of a table [V, C], the parameter of that name, for tokens [B, T]: [B, T, C].

    Where a mesh cuts the table, each device looks up its columns for the tokens of all that share its part of the
    batch, and sends them theirs. Left to itself XLA gathers all of the result on every device.
    """
    if mesh_in_force() is None:
        return table[tokens]

    def on_device(table: jax.Array, tokens: jax.Array) -> jax.Array:
        tokens = jax.lax.all_gather(tokens, "sequence", axis=1, tiled=True)
        tokens = jax.lax.all_gather(tokens, "fsdp", axis=0, tiled=True)
        if spec[0] is None:
            x = table[tokens]
        else:
            rows = tokens - jax.lax.axis_index(spec[0]) * len(table)
            here = (rows >= 0) & (rows < len(table))
            x = jax.lax.psum(jnp.where(here[..., None], table[jnp.where(here, rows, 0)], 0.0), spec[0])
        x = jax.lax.all_to_all(x, "sequence", split_axis=1, concat_axis=2, tiled=True)
        return jax.lax.all_to_all(x, "fsdp", split_axis=0, concat_axis=2, tiled=True)

    spec, stream = spec_of(name), spec_of("<stream>")
    return jax.shard_map(on_device, in_specs=(spec, stream), out_specs=stream)(table, tokens)

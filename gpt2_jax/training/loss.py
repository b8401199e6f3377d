"""The cross entropy of the next token, of logits that are there or of states whose logits are made in parts.

Axes: N positions of a device, D devices that cut positions, others as in model.py.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from gpt2_jax.model import logits_of
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.partitions import CUT, mesh_in_force, scatter_each, spec_of


def cross_entropy(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Logits [..., V], targets and mask [...] -> the sum in nats over the positions that count, float32 []."""
    # Comparing with an iota instead of gathering: XLA fuses it, and its gradient needs no scatter.
    hits = targets[..., None] == jnp.arange(logits.shape[-1])
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.where(hits, logits, 0.0).sum(-1)
    return jnp.where(mask, losses, 0.0).sum()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def in_chunks(
    config: GPT2Config, chunks: int, name: str, table: jax.Array, x: jax.Array, targets: jax.Array, mask: jax.Array
) -> jax.Array:
    """`cross_entropy` of the logits of states x [B, T, C], made in `chunks` parts one after another.

    The gradient is made with them, so that no logits are kept or made again. On a mesh each device gathers the table
    once, adds up the table's gradient over its own positions, and scatters the sum once.

    Args:
      config: of the model.
      chunks: must divide the positions of a device.
      name, table: `GPT2.head_table`.
      x, targets, mask: [B, T, C], int [B, T], bool [B, T].

    Returns:
      float32 [].
    """

    def on_device(table, x, targets, mask):
        add = lambda total, part: (total + cross_entropy(logits_of(config, table, part[0]), *part[1:]), None)
        return _sum(jax.lax.scan(add, jnp.zeros(()), _parts(chunks, x, targets, mask))[0])

    return _on_devices(on_device, P())(_whole(table, x), x, targets, mask)


def _forward(config, chunks, name, table, x, targets, mask):
    def on_device(table, x, targets, mask):
        def add(sums, part):
            loss = lambda table, x: cross_entropy(logits_of(config, table, x), *part[1:])
            total, (of_table, of_x) = jax.value_and_grad(loss, (0, 1))(table, part[0])
            return (sums[0] + total, sums[1] + of_table), of_x

        sums = jnp.zeros(()), jnp.zeros(table.shape, jnp.float32)
        (total, of_table), of_x = jax.lax.scan(add, sums, _parts(chunks, x, targets, mask))
        return _sum(total), of_table[None], of_x.reshape(x.shape)

    specs = P(), P(CUT), spec_of("<stream>")
    total, of_table, of_x = _on_devices(on_device, specs)(_whole(table, x), x, targets, mask)  # of_table [D, V, C]
    return total, (of_table[0] if mesh_in_force() is None else scatter_each(of_table, spec_of(name)), of_x)


def _backward(config, chunks, name, gradients, g):
    return *((of.astype(jnp.float32) * g).astype(of.dtype) for of in gradients), None, None


in_chunks.defvjp(_forward, _backward)


def _whole(table: jax.Array, x: jax.Array) -> jax.Array:
    """The table in the dtype of the states, cut by `model` alone."""
    table = table.astype(x.dtype)
    return table if mesh_in_force() is None else jax.lax.with_sharding_constraint(table, P("model"))


def _on_devices(function, out_specs):
    """`function` of a table [V, C] and [B, T, ...], for each device's own positions where a mesh cuts them."""
    if mesh_in_force() is None:
        return function
    stream = spec_of("<stream>")
    return jax.shard_map(
        function, in_specs=(P(), stream, stream, stream), out_specs=out_specs, axis_names=set(CUT), check_vma=False
    )


def _sum(x: jax.Array) -> jax.Array:
    return x if mesh_in_force() is None else jax.lax.psum(x, CUT)


def _parts(chunks: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """[B, T, ...] -> [chunks, N / chunks, ...]."""
    return tuple(a.reshape(chunks, -1, *a.shape[2:]) for a in arrays)

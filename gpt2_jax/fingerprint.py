"""Whether two models are the same one, to the bit, wherever their parameters lie."""

import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.model import parameter_names

MULTIPLIERS = (2654435761, 2246822519)  # odd: of a sum modulo 2**32, every bit of every number counts


def fingerprint(model: Any) -> str:
    """A digest of the parameters of a model, or of a part with None elsewhere: to the bit, on whatever devices."""
    names, leaves = jax.tree.leaves(parameter_names(model)), jax.tree.leaves(model)
    listed = sorted((name, x.shape, np.asarray(_sums(x)).tolist()) for name, x in zip(names, leaves))
    return hashlib.sha256(repr(listed).encode()).hexdigest()[:32]


@jax.jit
def _sums(x: jax.Array) -> jax.Array:
    """Two sums of the bits of float32 numbers, each times an odd number of its place; uint32 [2]."""
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        stride = math.prod(x.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    mixed = [bits * (2 * place + 1) * jnp.uint32(odd) ^ (bits >> 15) * jnp.uint32(odd) for odd in MULTIPLIERS]
    return jnp.stack([m.sum(dtype=jnp.uint32) for m in mixed])

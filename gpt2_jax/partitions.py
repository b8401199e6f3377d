"""Where everything of a run lies on the mesh: one table from names to partitions.

Mesh axes: `data` (the batch), `fsdp` (the batch, and shards of every parameter), `model` (heads, MLP, vocabulary),
`sequence` (positions of every activation, and shards of every parameter). Axis letters as in model.py.
"""

import functools
import re

import jax
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "model", "sequence")
ROWS = ("data", "fsdp")  # what cuts a batch
CUT = (*ROWS, "sequence")  # what cuts positions
SHARDS = (
    "fsdp",
    "sequence",
)  # what cuts a parameter: devices that have parts of the same sequence have no need of copies
IN_TURN = ("tpu",)  # platforms on which sums over many devices are scattered in two steps

# The first pattern found in a name decides. A parameter's is also that of its optimizer moments and gradient; names in
# angle brackets are activations'.
RULES = (
    (r"(wte|lm_head)\.embedding$", P("model", SHARDS)),  # [V, C]
    (r"wpe\.embedding$", P(None, SHARDS)),  # [n_positions, C]
    (r"h\.attn\.c_attn\.kernel$", P(None, SHARDS, None, "model")),  # [L, C, 3, C]
    (r"h\.attn\.c_attn\.bias$", P(None, None, "model")),  # [L, 3, C]
    (r"h\.mlp\.c_fc\.kernel$", P(None, SHARDS, "model")),  # [L, C, n_inner]
    (r"h\.mlp\.c_fc\.bias$", P(None, "model")),  # [L, n_inner]
    (r"h\.\w+\.c_proj\.kernel$", P(None, "model", SHARDS)),  # [L, C or n_inner, C]
    # Adapters as their kernels, of which a rank is in no parts.
    (r"h\.(attn\.c_attn|mlp\.c_fc)\.lora_a$", P(None, SHARDS)),  # [L, C, R]
    (r"h\.attn\.c_attn\.lora_b$", P(None, None, None, "model")),  # [L, R, 3, C]
    (r"h\.mlp\.c_fc\.lora_b$", P(None, None, "model")),  # [L, R, n_inner]
    (r"h\.\w+\.c_proj\.lora_a$", P(None, "model")),  # [L, C or n_inner, R]
    (r"h\.\w+\.c_proj\.lora_b$", P(None, None, SHARDS)),  # [L, R, C]
    (r"<batch>", P(ROWS)),  # [B, ...]
    (r"<stream>", P(ROWS, "sequence")),  # [B, T, C], between the blocks
    (r"<queries>", P(ROWS, "model", "sequence")),  # [B, H, T, K]
    (r"<keys>", P(ROWS, "model")),  # [B, H, S, K], of keys and values: all positions, gathered over `sequence`
    (r"<logits>", P(ROWS, "sequence", "model")),  # [B, T, V]
    (r"", P()),  # other biases, layer norms, scalars
)


def spec_of(name: str) -> P:
    """The partition of what has this name."""
    return next(spec for pattern, spec in RULES if re.search(pattern, name))


def mesh_in_force() -> AbstractMesh | None:
    """The mesh of several devices that `sharding.on_mesh` has put in force; one with other axes is not ours."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES and mesh.size > 1 else None


def constrain(x: jax.Array, name: str) -> jax.Array:
    """`x`, laid out as the table says on the mesh in force, if there is one."""
    return x if mesh_in_force() is None else jax.lax.with_sharding_constraint(x, spec_of(name))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scattered(x: jax.Array, spec: P) -> jax.Array:
    """`x` [...] in parts by `spec` on the mesh in force, if there is one; its gradient is `scatter`ed."""
    return x if mesh_in_force() is None else jax.lax.with_sharding_constraint(x, spec)


scattered.defvjp(lambda x, spec: (scattered(x, spec), None), lambda spec, _, g: (scatter(g, spec),))


def scatter(g: jax.Array, spec: P) -> jax.Array:
    """A sum over the devices that cut the batch, in parts by `spec` on the mesh in force, if there is one.

    Over all chips of a square or a cube the TPU's compiler has no reduce-scatter: it sums everything on every chip, in
    twice the bytes. Over rows and then over columns of them it has, and two in turn send no more bytes than one.
    """
    mesh = mesh_in_force()
    if mesh is None:
        return g
    if SHARDS not in spec:
        return jax.lax.with_sharding_constraint(g, spec)
    outer, within = turns(mesh)
    if outer > 1 and spec.index(SHARDS) == 1 and g.ndim == 2:
        return scatter(g.T, P(SHARDS, spec[0])).T  # in parts that lie together; others it sums on every chip
    if mesh.abstract_device.platform in IN_TURN and outer == 1 < within:
        g = with_layout_constraint(g, _major(g.ndim, spec))
    if outer > 1:
        sizes = {axis: mesh.shape[axis] for axis in AXES} | {"fsdp": outer, "within": within}
        names = ("data", "fsdp", "within", "model", "sequence")
        halfway = AbstractMesh(tuple(sizes[name] for name in names), names, axis_types=(AxisType.Auto,) * len(names))
        coarse = P(*("fsdp" if axes == SHARDS else axes for axes in spec))
        g = jax.lax.with_sharding_constraint(g, NamedSharding(halfway, coarse))
    return jax.lax.with_sharding_constraint(g, spec)


def _major(ndim: int, spec: P) -> Layout:
    """The layout in memory in which the parts that `fsdp` cuts are each in one piece."""
    cut = spec.index(SHARDS)
    return Layout((cut, *(axis for axis in range(ndim) if axis != cut)))


def scatter_each(g: jax.Array, spec: P) -> jax.Array:
    """`scatter` of sums that are still apart: g [D, V, C], one of each of the D devices that cut positions."""
    mesh, (outer, within) = mesh_in_force(), turns(mesh_in_force())
    grid = np.arange(outer * within).reshape(outer, within)
    # None over one device: the TPU's compiler keeps it.
    turns_of = [("fsdp", groups.tolist()) for groups in (grid.T, grid) if groups.shape[1] > 1]
    turns_of += [("sequence", None)] if mesh.shape["sequence"] > 1 else []

    def on_device(g: jax.Array) -> jax.Array:
        g = g[0].T
        for axis, groups in turns_of:
            if mesh.abstract_device.platform in IN_TURN:
                # It scatters parts that lie together in memory; others it sums on every device.
                g = with_layout_constraint(g, Layout((0, 1)))
            g = jax.lax.psum_scatter(g, axis, axis_index_groups=groups, tiled=True)
        return jax.lax.psum(g.T, "data") if mesh.shape["data"] > 1 else g.T

    return jax.shard_map(on_device, in_specs=P(CUT, spec[0]), out_specs=spec, check_vma=False)(g)


def turns(mesh: AbstractMesh) -> tuple[int, int]:
    """The two factors of the `fsdp` axis over which sums are scattered in turn; the first is 1 if one turn does it."""
    size, device = mesh.shape["fsdp"], mesh.abstract_device
    if device.platform not in IN_TURN:
        return 1, size
    factors = [n for n in range(2, size + 1) if size % n == 0]
    if "lite" in device.device_kind:  # v5e and v6e, whose chips are a plane
        fewest, outer = 16, next((n for n in factors if n * n >= size), 1)
    else:  # v4 and v5p, a cube; which of its lines go first was found by compiling
        fewest, outer = 8, 8 if size == 16 else next((n for n in factors if size // n <= 8), 1)
    return (1, size) if size < fewest else (outer, size // outer)


def ways(axis: str) -> int:
    """Into how many parts the mesh in force cuts what lies along one of its axes; 1 without one."""
    mesh = mesh_in_force()
    return 1 if mesh is None else mesh.shape[axis]

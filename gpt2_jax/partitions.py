"""Where everything of a run lies on the mesh: one table from names to partitions.

Mesh axes: `data` (the batch), `fsdp` (the batch, and shards of every parameter), `model` (heads, MLP, vocabulary),
`sequence` (positions of every activation, and shards of every parameter). Axis letters as in model.py.
"""

import re

import jax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "model", "sequence")
ROWS = ("data", "fsdp")  # what cuts a batch
SHARDS = (
    "fsdp",
    "sequence",
)  # what cuts a parameter: devices that have parts of the same sequence have no need of copies

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
    (r"<matrix>", P(SHARDS)),  # [C, 3 C], a c_attn.kernel whose heads are not cut
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


def ways(axis: str) -> int:
    """Into how many parts the mesh in force cuts what lies along one of its axes; 1 without one."""
    mesh = mesh_in_force()
    return 1 if mesh is None else mesh.shape[axis]

"""How a run lies on devices: the mesh, and one table from parameter names to partitions.

Mesh axes: `data` (the batch), `fsdp` (the batch, and shards of every parameter), `model` (heads, MLP, vocabulary).
"""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt2_jax.config import MeshConfig
from gpt2_jax.errors import InputError
from gpt2_jax.model import GPT2Config, parameter_name

AXES = ("data", "fsdp", "model")
BATCH = P(("data", "fsdp"))

# The first pattern found in a parameter's name decides, for the parameter and for its optimizer moments alike.
RULES = (
    (r"(wte|lm_head)\.embedding$", P("model", "fsdp")),  # [V, C]
    (r"wpe\.embedding$", P(None, "fsdp")),  # [n_positions, C]
    (r"h\.attn\.c_attn\.kernel$", P(None, "fsdp", None, "model")),  # [L, C, 3, C]
    (r"h\.attn\.c_attn\.bias$", P(None, None, "model")),  # [L, 3, C]
    (r"h\.mlp\.c_fc\.kernel$", P(None, "fsdp", "model")),  # [L, C, n_inner]
    (r"h\.mlp\.c_fc\.bias$", P(None, "model")),  # [L, n_inner]
    (r"h\.\w+\.c_proj\.kernel$", P(None, "model", "fsdp")),  # [L, C or n_inner, C]
    (r"", P()),  # other biases, layer norms, scalars
)


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh (data, fsdp, model) over all devices, or over those given.

    Raises:
      InputError: the axes' product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(config, axis) for axis in AXES]
    fixed = math.prod(size for size in sizes if size != -1)
    if len(devices) % fixed == 0:
        sizes = [len(devices) // fixed if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        wanted = ", ".join(f"mesh.{axis}={size}" for axis, size in zip(AXES, sizes))
        raise InputError(
            f"{wanted} needs a multiple of {abs(math.prod(sizes))} devices and there are {len(devices)}; set one axis "
            "to -1 to take all that the others leave"
            if -1 in sizes
            else f"{wanted} is {math.prod(sizes)} devices and there are {len(devices)}; set one axis to -1 to take all "
            "that the others leave"
        )
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def check_mesh(mesh: Mesh, model: GPT2Config, batch_sizes: dict[str, int]) -> None:
    """Raises `InputError` unless the batches and the model's axes divide over the mesh.

    Args:
      mesh: from `make_mesh`.
      model: its heads, width, MLP and padded vocabulary are what is cut.
      batch_sizes: sequences in one device step, by the name of the option to blame.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    for option, size in batch_sizes.items():
        if size % ways:
            raise InputError(
                f"{option} is {size} sequences, which {ways} devices (mesh.data={mesh.shape['data']} x mesh.fsdp="
                f"{mesh.shape['fsdp']}) cannot share; use a multiple of {ways}, such as {math.ceil(size / ways) * ways}"
            )
    inner = model.n_inner or 4 * model.n_embd
    for axis, option, size in (
        ("model", "model.n_head", model.n_head),
        ("model", "model.n_inner", inner),
        ("model", "the padded vocabulary (see model.vocab_multiple)", model.padded_vocab_size),
        ("fsdp", "model.n_embd", model.n_embd),
    ):
        if size % mesh.shape[axis]:
            raise InputError(f"{option} is {size}; it must be a multiple of mesh.{axis} ({mesh.shape[axis]})")


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` for each leaf (an array or a shape) of a model or a state with a `model`, by `RULES`.

    Optimizer moments of their parameter's shape lie as it does. All else is small and on every device: scalars, and
    moments factored into rows and columns, which have fewer or other axes than the rule is written for.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(getattr(tree, "model", tree))
    shapes = {parameter_name(path): leaf.shape for path, leaf in leaves}

    def sharding(path, leaf) -> NamedSharding:
        name = parameter_name(path)
        parameter = next((known for known in shapes if f".{name}".endswith(f".{known}")), None)
        if parameter is None or leaf.shape != shapes[parameter]:
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, next(spec for pattern, spec in RULES if re.search(pattern, name)))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch -> arrays of the whole batch, cut over (data, fsdp)."""
    sharding = NamedSharding(mesh, BATCH)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def on_one_device(tree: Any, mesh: Mesh) -> Any:
    """A copy of a sharded tree on this process's first device; every process of the mesh must call it."""
    replicated = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), replicated)

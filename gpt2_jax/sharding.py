"""How a run lies on devices: the mesh, and the shardings of trees and batches on it, by the table in partitions.py."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt2_jax.config import MeshConfig
from gpt2_jax.data.rows import Rows
from gpt2_jax.errors import InputError
from gpt2_jax.model import parameter_name
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.partitions import AXES, ROWS, SHARDS, spec_of


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh of `partitions.AXES` over all devices, or over those given.

    Within a slice, neighbours along an axis are neighbours of the network; several slices are parts of the `data` axis.

    Raises:
      InputError: the axes' product is not the number of devices, or the slices do not divide them or `data`.
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
    slices = _slices(config, devices)
    if sizes[0] % len(slices):
        raise InputError(
            f"mesh.data is {sizes[0]}, and the devices are {len(slices)} slices, over whose slow network only the batch"
            f" is cut; make it a multiple of {len(slices)}, or -1"
        )
    within = (sizes[0] // len(slices), *sizes[1:])
    auto = (AxisType.Auto,) * len(AXES)
    meshes = [jax.make_mesh(within, AXES, axis_types=auto, devices=of_slice) for of_slice in slices]
    return Mesh(np.concatenate([mesh.devices for mesh in meshes]), AXES, axis_types=auto)


def _slices(config: MeshConfig, devices: list[jax.Device]) -> list[list[jax.Device]]:
    """The devices of each slice: as they say themselves, or equal parts in their order."""
    of_slice: dict[int, list[jax.Device]] = {}
    for device in devices:
        of_slice.setdefault(getattr(device, "slice_index", 0) or 0, []).append(device)
    found = list(of_slice.values())
    wanted = config.slices or len(found)
    if len(found) == 1:
        if len(devices) % wanted:
            raise InputError(f"mesh.slices is {wanted}, which does not divide the {len(devices)} devices")
        size = len(devices) // wanted
        return [devices[start : start + size] for start in range(0, len(devices), size)]
    if wanted != len(found):
        raise InputError(
            f"mesh.slices is {wanted}, and the devices are of {len(found)}; set it to 0 to take what is there"
        )
    return found


def check_mesh(
    mesh: Mesh, model: GPT2Config, batch_sizes: dict[str, int], lengths: dict[str, int], group: str = "model"
) -> None:
    """Raises `InputError` unless the batches and the model's axes divide over the mesh.

    Args:
      mesh: from `make_mesh`.
      model: its heads, width, MLP and padded vocabulary are what is cut.
      batch_sizes: sequences in one device step, by the name of the option to blame.
      lengths: positions that are cut together, likewise.
      group: of the options that say the sizes of the model.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    for option, size in batch_sizes.items():
        if size % ways:
            raise InputError(
                f"{option} is {size} sequences, which {ways} devices (mesh.data={mesh.shape['data']} x mesh.fsdp="
                f"{mesh.shape['fsdp']}) cannot share; use a multiple of {ways}, such as {math.ceil(size / ways) * ways}"
            )
    inner = model.n_inner or 4 * model.n_embd
    for axes, option, size in (
        (("model",), f"{group}.n_head", model.n_head),
        (("model",), f"{group}.n_inner", inner),
        (("model",), "the padded vocabulary (see model.vocab_multiple)", model.padded_vocab_size),
        (SHARDS, f"{group}.n_embd", model.n_embd),
        *((("sequence",), option, length) for option, length in lengths.items()),
    ):
        parts = math.prod(mesh.shape[axis] for axis in axes)
        if size % parts:
            divisors = [str(n) for n in range(1, mesh.size + 1) if size % n == 0]
            raise InputError(
                f"{option} is {size}; it must be a multiple of {' x '.join(f'mesh.{axis}' for axis in axes)} ({parts}):"
                f" set that to one of {', '.join(divisors)}"
            )


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """A `NamedSharding` for each leaf (an array or a shape) of a model or a state with a `model`, by its name.

    Optimizer moments of their parameter's shape lie as it does. All else is small and on every device: scalars, and
    moments factored into rows and columns, which have fewer or other axes than the rule is written for.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(getattr(tree, "model", tree))
    shapes = {parameter_name(path): leaf.shape for path, leaf in leaves}

    def sharding(path, leaf) -> NamedSharding:
        name = parameter_name(path)
        found = (known for known in shapes if f".{name}".endswith(f".{known}"))
        parameter = max(found, key=len, default=None)  # "vision.wpe.embedding" ends with another's name, too
        if parameter is None or leaf.shape != shapes[parameter]:
            return NamedSharding(mesh, P())
        return NamedSharding(mesh, spec_of(name))

    return jax.tree_util.tree_map_with_path(sharding, tree)


@functools.cache
def rows_of(mesh: Mesh, process: int) -> Rows:
    """The rows of every batch that a process's devices hold, and that it must read."""
    ways = math.prod(mesh.shape[axis] for axis in ROWS)
    of_ways = mesh.devices.reshape(ways, -1)  # ROWS are the first of AXES
    holders = [sorted({device.process_index for device in devices}) for devices in of_ways]

    def constant(size: int) -> bool:
        return all(holders[i] == holders[i // size * size] for i in range(ways))

    size = next(size for size in range(ways, 0, -1) if ways % size == 0 and constant(size))
    readers = holders[::size]
    return Rows(
        parts=len(readers),
        held=tuple(part for part, processes in enumerate(readers) if process in processes),
        first=tuple(part for part, processes in enumerate(readers) if process == processes[0]),
    )


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch (`rows_of`) -> arrays of the whole batch, cut over (data, fsdp)."""
    sharding = NamedSharding(mesh, spec_of("<batch>"))
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    own = rows_of(mesh, jax.process_index())

    def whole(rows: np.ndarray) -> jax.Array:
        shape = (len(rows) * own.parts // len(own.held), *rows.shape[1:])
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return {name: whole(rows) for name, rows in batch.items()}


def on_mesh(mesh: Mesh, function: Callable) -> Callable:
    """`function` with the mesh in force, which `partitions.constrain` and the attention engines look for."""

    def call(*args: Any) -> Any:
        with jax.set_mesh(mesh):
            return function(*args)

    return call


def on_one_device(tree: Any, mesh: Mesh) -> Any:
    """A copy of a sharded tree on this process's first device; every process of the mesh must call it."""
    replicated = jax.jit(_itself, out_shardings=NamedSharding(mesh, P()))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), replicated)


def _itself(tree: Any) -> Any:
    return tree  # one function, so that it is compiled once

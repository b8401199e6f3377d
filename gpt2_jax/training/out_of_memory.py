"""What to do when a step needs more memory than a device has."""

import contextlib
import math
from collections.abc import Iterator

import jax
import numpy as np

from gpt2_jax.config import Config
from gpt2_jax.errors import InputError, one_line
from gpt2_jax.training.program import Program
from gpt2_jax.training.selection import split

SIGN = "RESOURCE_EXHAUSTED"  # in the errors of XLA, whatever the device


@contextlib.contextmanager
def explained(config: Config, program: Program) -> Iterator[None]:
    """Raises `InputError` instead of XLA's error about memory: what the largest arrays are, and the options to try."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if SIGN not in str(error):
            raise
        largest = ", ".join(f"{name} {size / 2**30:,.2f} GiB" for name, size in known_arrays(config, program).items())
        raise InputError(
            f"there is not enough memory for a step on {program.mesh.devices.flat[0]} ({one_line(error)[:300]}). "
            f"Beside activations a device holds: {largest}. What was saved stays; {advice(config, program)}. "
            "scripts/compile_for_topology.py tells what a TPU or GPU has room for"
        ) from error


def known_arrays(config: Config, program: Program) -> dict[str, float]:
    """{what: bytes on a device}, the largest first; activations, which only the compiler knows, are not among them."""

    def on_device(shapes, shardings) -> float:
        sizes = jax.tree.map(
            lambda x, sharding: math.prod(sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize, shapes, shardings
        )
        return sum(jax.tree.leaves(sizes))

    shapes, shardings = program.shapes, program.shardings
    rows = config.training.batch_size // config.training.accumulation_steps
    rows /= program.mesh.shape["data"] * program.mesh.shape["fsdp"]
    positions = config.sequence_length / program.mesh.shape["sequence"] / config.training.loss_chunks
    trained = lambda tree: split(tree.model, config.selection)[0]
    arrays = {
        "parameters": on_device(shapes.model, shardings.model),
        "their gradients": on_device(trained(shapes), trained(shardings)),
        "optimizer state": on_device(shapes.opt_state, shardings.opt_state),
        "float32 logits": 4 * rows * positions * config.model.padded_vocab_size / program.mesh.shape["model"],
    }
    return dict(sorted(arrays.items(), key=lambda item: -item[1]))


def advice(config: Config, program: Program) -> str:
    """The options that make a step smaller and are not at their end yet, those that cost nothing first."""
    training, T, mesh = config.training, config.sequence_length, program.mesh.shape
    platform = program.mesh.devices.flat[0].platform
    chunks = max(n for n in (1, 2, 4, 8) if T // mesh["sequence"] % n == 0)
    rows, ways = training.batch_size, mesh["data"] * mesh["fsdp"]
    parts = [n for n in range(training.accumulation_steps + 1, rows + 1) if rows % (n * ways) == 0]
    tries = {
        f"training.loss_chunks={chunks}": chunks > training.loss_chunks,
        "mesh.data=1 --config.mesh.fsdp=-1": mesh["data"] > 1,
        "model.dtype=bfloat16": config.model.dtype == "float32" and platform != "cpu",
        "model.remat=full": config.model.remat != "full",
        f"training.accumulation_steps={min(parts, default=0)}": bool(parts),
    }
    useful = [f"--config.{option}" for option, helps in tries.items() if helps]
    return f"run again with one or more of {', '.join(useful)}" if useful else "a smaller model is what is left"

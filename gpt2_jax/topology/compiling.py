"""Compiles a step for a topology, in a process of its own: `python -m gpt2_jax.topology.compiling RESULT < request`.

The compiler of TPUs can be loaded once in a process, takes its settings before JAX is imported and, of some programs,
aborts the process; so process.py starts one for each compilation, with the environment that it needs.
"""

import dataclasses
import functools
import json
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding

from gpt2_jax.config import Config
from gpt2_jax.errors import InputError, one_line
from gpt2_jax.generation import sampler
from gpt2_jax.generation.sampling import Sampling
from gpt2_jax.model import model_of_shapes, num_parameters
from gpt2_jax.partitions import spec_of
from gpt2_jax.sharding import make_mesh, on_mesh
from gpt2_jax.topology import chips, hlo
from gpt2_jax.training.program import Program

# An all-gather beside a matrix product becomes a loop of permutations, in which nothing can be counted any more.
COUNTABLE = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
# "Ran out of memory ... total memory required for HLO temporaries (24.57G) exceeds available HBM (15.75G)", or
# "... Used 20.53G of 15.75G hbm".
REFUSALS = (
    r"required[^()]*\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
    r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SIZES = {
    "arguments": "argument_size_in_bytes", "outputs": "output_size_in_bytes", "reused": "alias_size_in_bytes",
    "temporary": "temp_size_in_bytes", "peak": "peak_memory_in_bytes",
}  # fmt: skip


def lower_train_step(config: Config, devices: list[jax.Device]) -> tuple[Any, dict[str, Any]]:
    """The training step as a run jits it, of shapes alone.

    Returns:
      (what `compile()` compiles, {"mesh": its axes, "attention": the engine, "slice_of": the slice of each device in
      the order of the mesh, by which the program counts them}).

    Raises:
      InputError: the mesh does not fit the devices, the batches or the model.
    """
    program = Program.of(config, make_mesh(config.mesh, devices))
    mesh, state = program.mesh, jax.tree.map(_of_shape, program.shapes, program.shardings)
    lowered = on_mesh(mesh, program.train_step.lower)(state, _batch(config, mesh))
    slice_of = [getattr(device, "slice_index", 0) or 0 for device in mesh.devices.flat]
    return lowered, {"mesh": dict(mesh.shape), "attention": program.model.attention, "slice_of": slice_of}


def _batch(config: Config, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """What the data options make a batch of."""
    B, T = config.training.batch_size, config.sequence_length
    arrays = {"tokens": ((B, T + 1), jnp.int32), "mask": ((B, T), jnp.bool)}
    if config.data.mask_documents:
        arrays["segments"] = (B, T), jnp.int32
    if config.data.restart_positions:
        arrays["positions"] = (B, T), jnp.int32
    if config.image.source:
        arrays["images"] = (B, *config.image.shape), jnp.float32 if config.image.features else jnp.uint8
    sharding = NamedSharding(mesh, spec_of("<batch>"))
    return {name: jax.ShapeDtypeStruct(*array, sharding=sharding) for name, array in arrays.items()}


def lower_decode_step(config: Config, devices: list[jax.Device], batch_size: int) -> tuple[Any, dict[str, Any]]:
    """The sampler's loop with a cache of a whole context, on one device, as the package generates.

    Half of the context is prompts and half is for new tokens; the loop's length is traced, so what the program does
    counts once: for a token of each row.

    Returns:
      As `lower_train_step`.
    """
    context = config.model.n_positions
    model = model_of_shapes(config.model, stacked=False)
    prompts = [[0] * max(1, context // 2)] * batch_size
    state = jax.eval_shape(lambda: sampler.start_state(prompts, [(0, 0)] * batch_size, context - len(prompts[0])))
    rules = sampler.Rules(
        sampling=Sampling(temperature=0.8, top_p=0.95), end_tokens=np.array([-1], np.int32), limit=np.int32(context)
    )
    offsets = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    slots, capacity = len(prompts[0]), context - len(prompts[0])
    fill = functools.partial(sampler.fill, slots=slots, capacity=capacity)
    state, decoding = jax.eval_shape(fill, model, state, offsets, rules)
    here = SingleDeviceSharding(devices[0])
    put = functools.partial(jax.tree.map, lambda x: _of_shape(x, here))
    lowered = sampler.advance.lower(
        put(model), put(state), put(decoding), put(rules), jax.ShapeDtypeStruct((), jnp.int32, sharding=here)
    )
    return lowered, {"mesh": {"data": 1}, "attention": "xla", "slice_of": [0]}


def _of_shape(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    x = jax.eval_shape(lambda: x) if not hasattr(x, "dtype") else x
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def compile_step(request: dict[str, Any]) -> dict[str, Any]:
    """Compiles and describes; see `process.compile_elsewhere` for what goes in and out."""
    topology, config = chips.find(request["topology"]), Config.from_dict(request["config"])
    if topology.platform == "cuda":
        _vouch_for_cudnn()
    devices = list(topologies.get_topology_desc(**topology.description()).devices)
    if request["step"] == "train":
        lowered, facts = lower_train_step(config, devices)
    else:
        lowered, facts = lower_decode_step(config, devices, request["batch_size"])
    facts["parameters"] = num_parameters(model_of_shapes(config.model, stacked=True))
    options = COUNTABLE if request["countable"] and topology.platform == "tpu" else None
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        refused = refusal(str(error))
        if refused is None:
            raise InputError(f"the compiler refuses the program: {one_line(error)[:1000]}") from error
        return facts | {"memory": None, "refused": refused}
    text = compiled.as_text()
    if request["text"]:
        Path(request["text"]).write_text(text)
    analysis, program = compiled.memory_analysis(), hlo.read(text)
    return facts | {
        "memory": {name: getattr(analysis, attribute) for name, attribute in SIZES.items()},
        "refused": None,
        "collectives": [dataclasses.asdict(c) for c in program.collectives],
        "custom_calls": program.custom_calls,
        "unknown_loops": program.unknown_loops,
    }


def refusal(message: str) -> dict[str, float] | None:
    """{"needs", "has"} in bytes, of the compiler's words for too little memory; None if they are about another thing.

    Raises:
      InputError: it is about memory, in words that are not known.
    """
    for pattern in REFUSALS:
        if found := re.search(pattern, message):
            needs, needs_unit, has, has_unit = found.groups()
            return {"needs": float(needs) * UNITS[needs_unit], "has": float(has) * UNITS[has_unit]}
    if "RESOURCE_EXHAUSTED" in message:
        raise InputError(
            f"the compiler has too little memory and does not say of what: {' '.join(message.split())[:1000]}"
        )
    return None


def _vouch_for_cudnn() -> None:
    """JAX asks this machine's cuDNN and GPU for their versions while tracing; those of the target are in chips.py."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    cudnn.check_cudnn_version = lambda: 91000
    cudnn.check_compute_capability = lambda *_: True
    cudnn.is_cuda_compute_capability_equal = lambda *_: False


def main() -> None:
    """Reads a request as JSON from the standard input, and writes what was found to the file that is named."""
    start = time.process_time()
    try:
        result = compile_step(json.load(sys.stdin))
    except InputError as error:
        result = {"error": str(error)}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result |= {"cpu_seconds": time.process_time() - start, "resident": usage.ru_maxrss * 1024}
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()

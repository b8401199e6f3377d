"""One process for each compilation, and what is said of those that fail."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gpt2_jax.config import Config
from gpt2_jax.errors import InputError
from gpt2_jax.topology.chips import Topology

ROOT = Path(__file__).parents[2]
NEEDED = {  # modules of which one must be there, and how to get it
    "tpu": (("libtpu",), "the TPU's compiler (libtpu)", "aot"),
    "cuda": (("jax_cuda12_plugin", "jax_cuda13_plugin"), "JAX's CUDA plugin", "aot-cuda"),
}
WHOLE_COPY = "Involuntary full rematerialization"  # what XLA warns of
HAS = "import importlib.util as u, sys; sys.exit(not any(u.find_spec(name) for name in sys.argv[1:]))"


def config_of(options: dict[str, dict[str, Any]]) -> Config:
    """The config of a run whose tokenizer is not there: for a `model.vocab_size` of 0, what it would have at most.

    Sizes of a run that starts from a model are those of the model, which must be there.

    Raises:
      InputError: bad options, or a start that cannot be opened.
    """
    unbound = Config.from_dict(options)
    if unbound.finetune.start:
        from gpt2_jax.training.start import open_start  # with Orbax, which is slow to import

        start = open_start(unbound.finetune.start)
        return Config.from_dict(start.sized(options), vocab_size=start.config.vocab_size)
    trained = unbound.data
    return Config.from_dict(options, vocab_size=trained.vocab_size if trained.tokenizer == "bpe" else None)


def compile_elsewhere(
    topology: Topology,
    config: Config,
    step: str,
    *,
    batch_size: int = 8,
    full: bool = False,
    countable: bool = True,
    text: Path | None = None,
    python: str = sys.executable,
) -> dict[str, Any]:
    """Compiles a step in another process.

    Args:
      topology: for what.
      config: of the run; its batch and mesh count.
      step: "train" or "decode".
      batch_size: rows that decode at once.
      full: with all of the compiler's passes; otherwise the few that make a program, in a quarter of the time and with
        up to an eighth more memory (of two comparisons).
      countable: on TPUs, leave all-gathers in one piece.
      text: a file for the compiled program, HLO.
      python: the interpreter, which must have the compiler.

    Returns:
      "parameters"; "mesh", {axis: devices}; "attention", the engine; "memory", bytes on a device: "arguments",
      "outputs", "reused" (outputs in the place of arguments), "temporary" and "peak", all at once; or None and
      "refused", {"needs", "has"}, where the compiler finds it too much; "collectives", fields of `hlo.Collective`;
      "slice_of" each device of their groups; "custom_calls" {target: executions}; "unknown_loops"; "whole_copies",
      arrays that each device makes whole to lay them out anew; "cpu_seconds" and "resident" bytes of the compilation.

    Raises:
      InputError: the compiler is not installed, aborts or refuses the program for another reason than its memory; or
        the mesh does not fit.
    """
    modules, what, extra = NEEDED[topology.platform]
    if shutil.which(python) is None:
        raise InputError(f"there is no interpreter {python}; --python names one that has the compiler")
    if subprocess.run([python, "-c", HAS, *modules], check=False).returncode:
        raise InputError(f"{what} is not installed in {python}; pip install 'gpt2_jax[{extra}]'")
    request = {
        "topology": topology.name, "config": config.to_dict(), "step": step, "batch_size": batch_size,
        "countable": countable, "text": str(text.absolute()) if text else None,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        done = subprocess.run(
            [python, "-m", "gpt2_jax.topology.compiling", str(file)],
            input=json.dumps(request),
            env=environment(topology, full=full) | {"TPU_LOG_DIR": folder},
            capture_output=True,
            text=True,
            check=False,
        )
        if not file.exists():
            raise InputError(_how_it_ended(done))
        result = json.loads(file.read_text())
        logs = [log.read_text(errors="replace") for log in Path(folder).glob("*.log.WARNING.*")]
    if "error" in result:
        raise InputError(result["error"])
    copies = sum(log.count(WHOLE_COPY) for log in [done.stderr, *logs])
    return result | {"whole_copies": copies}


def environment(topology: Topology, *, full: bool) -> dict[str, str]:
    """What a compilation needs of its environment; XLA_FLAGS, being about this machine's devices, are not passed on."""
    dropped = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_COMPILATION_CACHE_DIR", "JAX_NUM_CPU_DEVICES")
    inherited = {name: value for name, value in os.environ.items() if name not in dropped}
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    ours = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "JAX_PLATFORMS": "cpu",  # no TPU is looked for, and the CUDA plugin does not ask for a driver
        "JAX_OPTIMIZATION_LEVEL": "UNKNOWN" if full else "O0",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # libtpu warns without these two, whatever they say
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TF_CPP_MIN_LOG_LEVEL": "1",  # warnings, which are counted
    }
    if topology.platform == "cuda":
        ours["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"  # which would run the kernels
    return inherited | ours


def _how_it_ended(done: subprocess.CompletedProcess) -> str:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    # An abort says why before it lists the stack; an exception in Python's last line.
    why = next(
        (line for line in lines if re.match(r"F\d{4} ", line) or "Check failed" in line), lines[-1] if lines else ""
    )
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"the compiler ended its process ({name}), which is a fault of its own: {why.strip()[:500]}"
    return f"the compilation failed: {why.strip()[:500]}"

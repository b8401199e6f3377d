"""Compiles a run's training step, or the decoding of a token, for TPUs or GPUs that are not here.

    python scripts/compile_for_topology.py --topology=v5e-8 --config=configs/openwebtext.py:gpt2-xl --config.mesh.fsdp=8
    python scripts/compile_for_topology.py --topology=v6e-1 --config=configs/openwebtext.py --step=decode --json

It says whether the memory suffices, what the devices exchange, and a bound on the speed. The number in a topology's
name counts chips; several slices are 2xv5e-8. Needs the compiler: pip install 'gpt2_jax[aot]' for TPUs,
'gpt2_jax[aot-cuda]' for GPUs.

Exits with 0 if the step fits, 2 if it does not, 1 after an error.
"""

import json
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from gpt2_jax import InputError
from gpt2_jax.config import parse_flags
from gpt2_jax.topology import chips, report
from gpt2_jax.topology.process import compile_elsewhere, config_of

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, such as configs/openwebtext.py:gpt2-xl.")
TOPOLOGY = flags.DEFINE_string("topology", None, "Of chips, such as v5e-8, 2xv5e-8 or h100-8.")
STEP = flags.DEFINE_enum("step", "train", ["train", "decode"], "What to compile.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Rows that decode at once, 8 by default.", lower_bound=1)
FULL = flags.DEFINE_bool("full", False, "Memory after all passes of the compiler, as a run has it: five times as long.")
JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")
HLO = flags.DEFINE_string("hlo", None, "File for the compiled program's text.")
PYTHON = flags.DEFINE_string("python", sys.executable, "The interpreter that has the compiler.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --config.mesh.fsdp=8")
    step, rows, text = STEP.value, BATCH_SIZE.value or 8, Path(HLO.value) if HLO.value else None
    try:
        if step == "train" and BATCH_SIZE.value:
            raise InputError("--batch_size is of --step=decode; of training set --config.training.batch_size")
        topology, config = chips.find(TOPOLOGY.value), config_of(CONFIG.value.to_dict())
        compiled = lambda **how: compile_elsewhere(topology, config, step, batch_size=rows, python=PYTHON.value, **how)
        counted = compiled(text=text)
        memory = compiled(full=True, countable=False) if FULL.value else counted
        summary = report.summarize(topology, config, step, rows, memory, counted)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(summary) if JSON.value else report.text(summary))
    return 0 if summary["fits"] else 2


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    app.run(main, flags_parser=parse_flags)

"""Finds the largest batch of each model that chips have memory for, by compiling; prints the rows of a Markdown table.

    python scripts/tabulate_topologies.py --topologies=v5e-8,v5e-16 --presets=gpt2,gpt2-xl --config.model.remat=full

Options of the config hold for all; parameters are cut over all chips (fsdp), or over as many as divide the width. A
batch is a multiple of 8 sequences a chip. Nothing runs on a chip, see compile_for_topology.py. Every compilation is a
line of JSON in --log. Exits with 1 after an error.
"""

import concurrent.futures
import json
import math
import sys
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from gpt2_jax import InputError, preset
from gpt2_jax.config import parse_flags
from gpt2_jax.topology import chips, report
from gpt2_jax.topology.process import compile_elsewhere, config_of

CONFIG = config_flags.DEFINE_config_file("config", "configs/openwebtext.py", "Config file.")
TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e-8", "v5e-16", "v4-16", "v6e-8", "h100-8"], "Names, as v5e-8.")
PRESETS = flags.DEFINE_list("presets", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"], "Sizes.")
FSDP = flags.DEFINE_integer("fsdp", 0, "Chips that share the parameters; 0: as many as can.", lower_bound=0)
JOBS = flags.DEFINE_integer("jobs", 1, "Compilations at once, of 1 to 2 GB each.", lower_bound=1)
LOG = flags.DEFINE_string("log", None, "File for a line of JSON a compilation.")
PYTHON = flags.DEFINE_string("python", sys.executable, "The interpreter that has the compiler.")

STEP = 8  # sequences a chip


def compiled(name: str, size: str, sequences: int) -> dict[str, Any]:
    """The summary (`report.summarize`) of a training step with so many sequences a chip."""
    topology, options = chips.find(name), CONFIG.value.to_dict()
    options["model"] |= preset(size)
    devices = topology.slices * math.prod(topology.shape)
    fsdp = FSDP.value or math.gcd(devices, options["model"]["n_embd"])
    options["mesh"] |= {"data": devices // fsdp, "fsdp": fsdp, "model": 1, "sequence": 1}
    options["training"] |= {"batch_size": devices * sequences, "accumulation_steps": 1}
    config = config_of(options)
    result = compile_elsewhere(topology, config, "train", python=PYTHON.value)
    summary = report.summarize(topology, config, "train", 0, result, result) | {"preset": size, "a_chip": sequences}
    if LOG.value:
        with open(LOG.value, "a") as file:
            file.write(json.dumps(summary) + "\n")
    return summary


def largest(name: str, size: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(the step of 8 sequences a chip, that of the most that fit or None)."""
    first = compiled(name, size, STEP)
    tried = {STEP: first}

    def fits(sequences: int) -> bool:
        if sequences not in tried:
            tried[sequences] = compiled(name, size, sequences)
        return tried[sequences]["fits"]

    if not first["fits"]:
        return first, None
    guess = STEP
    if fits(2 * STEP):  # memory grows evenly with the batch; the compiler's own sum then decides
        each = (tried[2 * STEP]["needs"] - first["needs"]) / STEP
        guess = STEP * max(2, int((first["has"] - first["needs"]) / each / STEP) + 1)
    while not fits(guess):
        guess -= STEP
    while fits(guess + STEP):
        guess += STEP
    return first, tried[guess]


def row(name: str, size: str) -> str:
    first, best = largest(name, size)
    mesh = " ".join(f"{axis}={ways}" for axis, ways in first["mesh"].items() if ways > 1)
    if best is None:
        return f"| {name} | {size} | {mesh} | does not fit | |"
    sent = {kind: f"{c['count']} ({c['bytes'] / 2**20:,.0f})" for kind, c in first["collectives"].items()}
    cells = (
        name, size, mesh, f"{first['needs'] / 2**30:.2f}", *(sent.get(kind, "") for kind in KINDS),
        f"{100 * first['mfu_ceiling']:.0f} %", first["limit"], f"{best['batch_size']:,}",
        f"{best['needs'] / 2**30:.2f} of {best['has'] / 2**30:.2f}",
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


KINDS = ("all-gather", "reduce-scatter", "all-reduce")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; name chips with --topologies=v5e-8,v6e-8")
    print(
        f"| chips | model | mesh | GiB at {STEP} a chip | {' | '.join(f'{kind} (MiB)' for kind in KINDS)} | "
        "MFU ceiling | longest bound | largest batch | GiB |"
    )
    print(f"|{' --- |' * 11}", flush=True)
    pairs = [(name, size) for name in TOPOLOGIES.value for size in PRESETS.value]
    with concurrent.futures.ThreadPoolExecutor(JOBS.value) as pool:
        try:
            for line in pool.map(lambda pair: row(*pair), pairs):
                print(line, flush=True)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)

"""Runs of several real processes on meshes that cross them along every axis: the losses of one device.

As a script, `python tests/training/test_processes.py`, it measures all meshes in 1, 2 and 4 processes.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest
from processes import join, run_together
from short_runs import use_devices

import gpt2_jax
from gpt2_jax.tokenizer_training import train_characters
from gpt2_jax.training import loop

DEVICES, STEPS = 8, 4
MESHES = {
    "fsdp": {"data": 1, "fsdp": 8},
    "mixed": {"data": 2, "fsdp": 2, "model": 2},
    "every axis": {"data": 1, "fsdp": 2, "model": 2, "sequence": 2},
    "long": {"data": 1, "fsdp": 2, "sequence": 4},
    "longest": {"data": 1, "sequence": 8},
}
KINDS = ("train_loss", "val_loss", "grad_norm")
RATE = 1e-2
TOLERANCE = 2e-6  # of losses of 3 nats and norms of 1: a few units in the last place of a float32
# Adam divides a gradient by its own size, so rounding counts where it is near zero: in one process as in several.
PARAMETERS = RATE / 1000


def options(folder: Path, mesh: str | None, road: str) -> dict:
    """Four steps of one layer, with a validation and a checkpoint after the second and the last, and samples."""
    return {
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 0, "resid_pdrop": 0.1},
        "data": {
            "source": "files", "paths": str(folder / "corpus.jsonl"), "tokenizer": str(folder / "tokenizer.json"),
            "validation_fraction": 0.2, "road": road, "readers": 4, "shuffle_windows": 8,
        },
        "optimizer": {"learning_rate": RATE, "final_learning_rate": 1e-3, "warmup_steps": 2},
        "training": {"steps": STEPS, "batch_size": 8, "log_every": 1, "sample_tokens": 4},
        "evaluation": {"every": 2, "windows": 8},
        "checkpoint": {"every": 2, "keep": 2},
        "mesh": MESHES[mesh] if mesh else {},
    }  # fmt: skip


def write_corpus(folder: Path) -> None:
    times = [f"it was the {word} of times, it was number {i};" for i in range(40) for word in ("best", "worst")]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in times))
    train_characters(times).save(folder / "tokenizer.json")


def in_processes(folder: Path, count: int, runs: list[tuple[Path, str, str]], timeout: float = 300) -> None:
    """Runs, each (workdir, mesh, road), one after another in so many processes."""
    (folder / "runs.json").write_text(json.dumps([[str(workdir), *rest] for workdir, *rest in runs]))
    run_together(__file__, count, folder, timeout)


def one_process(address: str, count: str, index: str, folder: str) -> None:
    """What each of several processes does."""
    join(address, count, index, devices=DEVICES // int(count))
    for workdir, mesh, road in json.loads((Path(folder) / "runs.json").read_text()):
        assert loop.train(options(Path(folder), mesh, road), Path(workdir)).step == STEPS


def on_one_device(folder: Path, road: str) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_devices(monkeypatch, jax.devices()[:1])
        loop.train(options(folder, None, road), folder / road)
    return folder / road


def half_of(workdir: Path, copy: Path) -> Path:
    """A copy of a run as it was after half of its steps."""
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    return copy


def numbers(workdir: Path) -> dict[tuple[int, str], float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {(line["step"], kind): line[kind] for line in lines for kind in KINDS if kind in line}


def differences(workdir: Path, reference: Path) -> tuple[float, float]:
    """The largest of a loss or gradient norm, and of a parameter."""
    found, wanted = numbers(workdir), numbers(reference)
    assert found.keys() == wanted.keys() and len(found) == 2 * STEPS + 3
    models = [jax.tree.leaves(gpt2_jax.load(folder).model) for folder in (workdir, reference)]
    of_parameters = [float(abs(a - b).max()) for a, b in zip(*models, strict=True)]
    return max(abs(found[key] - wanted[key]) for key in wanted), max(of_parameters)


def test_what_crosses_processes_changes_nothing(tmp_path):
    """In two processes that read the same text, and from the middle on in one on another mesh."""
    write_corpus(tmp_path)
    reference, two = on_one_device(tmp_path, "stream"), tmp_path / "two"
    in_processes(tmp_path, 2, [(two, "longest", "stream")])
    one = half_of(two, tmp_path / "one")
    assert loop.train(options(tmp_path, "every axis", "stream"), one).step == STEPS
    for workdir in (two, one):
        found = differences(workdir, reference)
        print(f"{workdir.name}: losses and gradient norms {found[0]:.1e}, parameters {found[1]:.1e}")
        assert found[0] < TOLERANCE and found[1] < PARAMETERS


def measure(folder: Path) -> None:
    """Prints what differs from one device, of all meshes in all numbers of processes."""
    write_corpus(folder)
    reference = on_one_device(folder, "prepared")
    columns: dict[str, dict[str, tuple[float, float]]] = {}
    runs = {count: {mesh: folder / f"{count} {mesh}" for mesh in MESHES} for count in (1, 2, 4)}
    for count, workdirs in runs.items():
        in_processes(folder, count, [(workdir, mesh, "prepared") for mesh, workdir in workdirs.items()], 1800)
        columns[str(count)] = {mesh: differences(workdir, reference) for mesh, workdir in workdirs.items()}
        print(count, columns[str(count)], flush=True)
    others = dict(zip(MESHES, [*MESHES][1:] + [*MESHES][:1], strict=True))
    workdirs = {mesh: half_of(runs[4][other], folder / f"resumed {mesh}") for mesh, other in others.items()}
    in_processes(folder, 2, [(workdir, mesh, "prepared") for mesh, workdir in workdirs.items()], 1800)
    columns["4, then 2 on this mesh"] = {mesh: differences(workdir, reference) for mesh, workdir in workdirs.items()}
    print("The largest difference of a loss or gradient norm / of a parameter from one device, by processes:")
    print(f"| mesh | {' | '.join(columns)} |")
    for mesh, axes in MESHES.items():
        name = " ".join(f"{axis}={size}" for axis, size in axes.items() if size > 1)
        print(f"| {name} | {' | '.join(f'{a:.1e} / {b:.1e}' for a, b in (c[mesh] for c in columns.values()))} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one_process(*sys.argv[1:])
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder))

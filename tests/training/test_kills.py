"""A run that is killed again and again, at instants of every kind, ends as one that nobody touched, bit for bit.

As a script, `python tests/training/test_kills.py FOLDER`, it reads a line of JSON `[road, workdir, event, count]` for
each attempt, and answers with how it ended. Each attempt is a fork, so that what takes long is imported once.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

STEPS = 32
TEXT = "it was the best of times, it was the worst of times; "
# (event, how many of them before the kill); "seconds" are since the start
POINTS = [
    *[("tokens", 1), ("tokens", 4), ("step", 0), ("step", 1), ("save", 1), ("sealing", 1), ("sealed", 1), ("named", 1)],
    *[("step", 3), ("half a line", 3), ("validation", 2), ("restore", 1), ("save", 2), ("sealing", 2), ("sealed", 2)],
    *[("named", 2), ("deletion", 1), ("step", 5), ("half a line", 8), ("deletion", 2), ("seconds", 1.0)],
]
ENDS = [("last save", 1), ("plot", 1)]  # of a run that goes on to its last step
KILLS = int(os.environ.get("GPT2_JAX_KILLS", "0"))  # on either road, in more runs, at instants drawn at random


def random_points():
    draw, kinds = random.Random(0), sorted({event for event, _ in POINTS} - {"tokens", "seconds"})
    while True:
        yield draw.choice(kinds), draw.randrange(1, 5)
        yield "seconds", draw.uniform(0.2, 4.0)


def options(folder, road):
    return {
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 0, "resid_pdrop": 0.1},
        "data": {
            "source": "files",
            "paths": str(folder / "corpus" / "*.txt"),
            "tokenizer": "characters" if road == "prepared" else str(folder / "tokenizer.json"),
            "validation_fraction": 0.2,
            "road": road,
        },
        "optimizer": {"learning_rate": 1e-2, "final_learning_rate": 1e-3, "warmup_steps": 2},
        "training": {"steps": STEPS, "batch_size": 4, "log_every": 1, "sample_tokens": 0},
        "evaluation": {"every": 2, "windows": 2},
        "checkpoint": {"every": 2},
    }


def everything(workdir):
    """(all arrays of the last checkpoint, all lines of metrics but for times)."""
    with ocp.StandardCheckpointer() as reader:
        arrays = [reader.restore(workdir / "checkpoints" / str(STEPS) / item) for item in ("model", "training")]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    kept = ("step", "train_loss", "grad_norm", "learning_rate", "val_loss")
    values = [{name: line[name] for name in kept if name in line} for line in lines]
    return jax.tree.leaves(arrays), [value for value in values if len(value) > 1]


@pytest.mark.parametrize("road", ["prepared", "stream"])
def test_a_run_that_is_killed_again_and_again(tmp_path, road):
    if road == "stream":
        from gpt2_jax.tokenizer_training import train_characters

        (tmp_path / "tokenizer.json").write_text(train_characters([TEXT]).to_json())
    (tmp_path / "corpus").mkdir()
    for i in range(12):  # 11 steps an epoch
        (tmp_path / "corpus" / f"{i}.txt").write_text(TEXT * 2 + "its"[i % 3] * (i % 7))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "XLA_FLAGS": ""}
    command, pipe = [sys.executable, __file__, str(tmp_path)], subprocess.PIPE
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment) as server,
    ):

        def attempt(workdir, event, count):
            server.stdin.write(json.dumps([road, str(tmp_path / workdir), event, count]) + "\n")
            server.stdin.flush()
            return server.stdout.readline().strip()

        assert attempt("straight", "never", 0) == "done", (tmp_path / "log").read_text()[-5000:]
        killed, more, runs = 0, random_points(), ["killed"]
        for event, count in (POINTS if road == "prepared" else POINTS[2:12:2]) + ENDS:
            end = attempt("killed", event, count)
            assert end == "killed" or (event == "seconds" and end == "done"), (event, count, end)
            killed += end == "killed"
        assert attempt("killed", "never", 0) == "done", (tmp_path / "log").read_text()[-5000:]
        while killed < KILLS:
            runs.append(f"killed-{len(runs)}")
            while (end := attempt(runs[-1], *next(more))) == "killed":
                killed += 1
            assert end == "done", (tmp_path / "log").read_text()[-5000:]
        server.stdin.close()
    print(f"{killed} kills, {len(runs)} runs")
    arrays, lines = everything(tmp_path / "straight")
    assert len(lines) > STEPS
    for run in runs:
        arrays_killed, lines_killed = everything(tmp_path / run)
        assert lines == lines_killed, run
        for mine, other in zip(arrays, arrays_killed, strict=True):
            np.testing.assert_array_equal(mine, other)
        assert not (tmp_path / run / "damaged").exists()


def kill_at(event, count):
    """Arranges that this process dies by SIGKILL at an instant."""
    from orbax.checkpoint._src.path import deleter

    from gpt2_jax.data import manifest
    from gpt2_jax.training import loop, metrics, run, seal
    from gpt2_jax.training.checkpoint import Checkpoints
    from gpt2_jax.training.checkpoint_writer import CheckpointWriter

    die = lambda: os.kill(os.getpid(), signal.SIGKILL)
    left = [count]

    def happens(which):
        if which == event:
            left[0] -= 1
            if left[0] < 0 or (left[0] == 0 and which != "step"):
                die()

    def before(owner, name, which):
        plain = getattr(owner, name)
        setattr(owner, name, lambda *a, **k: (happens(which), plain(*a, **k))[1])

    def after(owner, name, which):
        plain = getattr(owner, name)

        def call(*a, **k):
            result = plain(*a, **k)
            happens(which)
            return result

        setattr(owner, name, call)

    write = metrics.JsonlWriter._write

    def half_a_line(writer, step, values):
        if event == "half a line" and left[0] == 1:
            writer._file.write(json.dumps({"step": step, **values})[:20])
            writer._file.flush()
        happens("half a line")
        write(writer, step, values)

    metrics.JsonlWriter._write = half_a_line
    before(manifest, "write_file", "tokens")
    before(loop, "global_batch", "step")
    before(CheckpointWriter, "save", "save")
    before(seal, "seal", "sealing")
    after(seal, "seal", "sealed")
    plain = seal._flush_folder
    seal._flush_folder = lambda folder: (plain(folder), folder.name == "checkpoints" and happens("named"))
    before(run.Run, "validate", "validation")
    after(Checkpoints, "restore", "restore")
    before(loop.curves, "perplexity_curve", "plot")
    save = CheckpointWriter.save

    def save_and_perhaps_die(checkpoints, state, *rest):
        save(checkpoints, state, *rest)
        if int(state.step) == STEPS:
            happens("last save")

    CheckpointWriter.save = save_and_perhaps_die
    delete_steps = deleter.StandardCheckpointDeleter.delete_steps

    def delete(self, steps):
        if steps:
            happens("deletion")
        delete_steps(self, steps)

    deleter.StandardCheckpointDeleter.delete_steps = delete
    if event == "seconds":
        threading.Thread(target=lambda: (time.sleep(count), die()), daemon=True).start()


def main():
    folder = Path(sys.argv[1])
    import gpt2_jax.training.loop

    jax.config.update("jax_enable_compilation_cache", True)  # which the tests leave out
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    for line in sys.stdin:
        road, workdir, event, count = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)  # what a run says belongs to the log
            try:
                kill_at(event, count)
                gpt2_jax.training.loop.train(options(folder, road), Path(workdir))
                os._exit(0)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print("killed" if killed else "done" if status == 0 else f"failed: {status}", flush=True)


if __name__ == "__main__":
    main()

"""A long run keeps to its memory, its open files, its threads and the programs that it compiled.

As a script, `python tests/training/test_long_runs.py FOLDER`, it is that run, and prints a line of JSON at each save.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import psutil

STEPS, EVERY = 5_000, 500
TEXT = "it was the best of times, it was the worst of times; "
MEGABYTE = 2**20


def options(folder):
    return {
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 0, "resid_pdrop": 0.1},
        "data": {"source": "files", "paths": str(folder / "corpus.txt"), "tokenizer": "characters"},
        "training": {"steps": STEPS, "batch_size": 4, "log_every": 10, "sample_tokens": 4, "sample_every": EVERY},
        "evaluation": {"every": EVERY // 2, "windows": 4},
        "checkpoint": {"every": EVERY},
    }


def test_five_thousand_steps(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "XLA_FLAGS": ""}
    result = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [line["step"] for line in lines] == list(range(EVERY, STEPS + 1, EVERY))
    print(*lines, sep="\n")
    first, half, last = lines[1], lines[STEPS // EVERY // 2], lines[-1]  # after a fifth all has been used once
    assert last["compiled"] == first["compiled"]
    assert last["files"] <= first["files"] and last["threads"] <= first["threads"]
    assert last["memory"] - first["memory"] < 10 * MEGABYTE and last["memory"] - half["memory"] < 10 * MEGABYTE


def main():
    from gpt2_jax.training import loop
    from gpt2_jax.training.run import Run

    folder, this, compiled = Path(sys.argv[1]), psutil.Process(), []
    (folder / "corpus.txt").write_text(TEXT * 400)
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: event == "/jax/core/compile/backend_compile_duration" and compiled.append(event)
    )
    save = Run.save

    def watched(run, state, checkpoints, *rest):
        checkpoints.wait()
        now = {"step": int(state.step), "memory": this.memory_info().rss, "files": this.num_fds()}
        print(json.dumps(now | {"threads": threading.active_count(), "compiled": len(compiled)}), flush=True)
        save(run, state, checkpoints, *rest)

    Run.save = watched
    loop.train(options(folder), folder / "run")


if __name__ == "__main__":
    main()

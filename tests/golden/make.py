"""Makes `format-N.tar.xz` here: a run of four steps as the present code leaves it, and how it goes on to the eighth.

    python tests/golden/make.py

Once for each format of checkpoints (seal.py), by the last code that writes it: what is here is never made again.
"""

import json
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np

import gpt2_jax
from gpt2_jax.training import loop

TEXT = "it was the best of times, it was the worst of times; " * 60


def options(steps: int) -> dict:
    return {
        "model": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 0, "resid_pdrop": 0.1},
        "data": {"source": "files", "paths": "corpus.txt", "tokenizer": "characters", "validation_fraction": 0.2},
        "optimizer": {"learning_rate": 1e-2, "final_learning_rate": 1e-3, "warmup_steps": 2},
        "training": {"steps": steps, "batch_size": 8, "log_every": 1, "sample_tokens": 0},
        "evaluation": {"every": 2},
        "checkpoint": {"every": 2},
    }


def measure(workdir: Path) -> dict[str, list]:
    """{"losses": [step, training loss] of each line of a run, "logits": of its newest parameters}."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    losses = [[line["step"], line["train_loss"]] for line in lines if "train_loss" in line]
    lm = gpt2_jax.load(workdir)
    return {"losses": losses, "logits": np.asarray(lm.model([lm.tokenizer.encode("it was")])).tolist()}


def main() -> None:
    from gpt2_jax.training import seal

    target = Path(__file__).absolute().parent / f"format-{seal.FORMAT}.tar.xz"
    if target.exists():
        sys.exit(f"error: {target.name} exists; this code writes the same format, of which nothing is to be made again")
    os.chdir(tempfile.mkdtemp())
    Path("corpus.txt").write_text(TEXT)
    os.utime("corpus.txt", (1, 1))  # a run sees when its text was written; archives know it to the second
    loop.train(options(4), Path("run"))
    shutil.copytree("run", "gone_on")
    loop.train(options(8), Path("gone_on"))
    golden = {"at": measure(Path("run")), "end": measure(Path("gone_on"))}
    Path("golden.json").write_text(json.dumps(golden))
    with tarfile.open(target, "w:xz") as tar:
        for name in ("golden.json", "corpus.txt", "run/checkpoints/4", "run/data", "run/metrics.jsonl"):
            tar.add(name)
    print(f"{target.name}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

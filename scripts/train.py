"""Trains a GPT-2, or goes on with a run: the same command does both.

    python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart
    python scripts/train.py --config=configs/quickstart.py --workdir=runs/wide --config.model.n_embd=256

`python scripts/train.py --config=configs/quickstart.py --workdir=runs/x --helpfull` lists every option; config.py
explains them.
"""

import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from gpt2_jax import InputError, compilation_cache

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, such as configs/quickstart.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; a run found there goes on.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --config.training.steps=100")
    compilation_cache.enable()
    from gpt2_jax.training.loop import train  # TensorFlow takes seconds: after the flags are known to be right

    workdir = Path(WORKDIR.value)
    try:
        outcome = train(CONFIG.value.to_dict(), workdir)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if outcome.signal is not None:
        print(f"stopped and saved at step {outcome.step}; to go on, run the same command again")
        return 128 + outcome.signal
    print(f"done: {outcome.step} steps in {workdir}; next: python scripts/generate.py --workdir={workdir}")
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)

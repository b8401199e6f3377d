"""Trains a GPT-2, or goes on with a run: the same command does both.

    python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart
    python scripts/train.py --config=configs/quickstart.py --workdir=runs/wide --config.model.n_embd=256

On several machines, one such process on each: see scripts/launch/.

Every option and its meaning is in gpt2_jax/config.py; `--config=FILE --help` shows these flags. It ends with

    0              all steps are done, or the validation loss falls no more (evaluation.patience)
    1              the command line is wrong, or a bug: the traceback says where
    2              bad input, such as an option, a file or a full disk; nothing is gained by starting again as it is
    75             no progress, or another process was lost: start again, and it goes on from the last checkpoint
    130, 138, 143  stopped by SIGINT, SIGUSR1, SIGTERM or a notice and saved; at once, without saving, by a second one
    134, 137, 139  ended from outside: aborted by JAX because process 0 was lost, killed, crashed; start again

A signal before the first step ends it as it ends any program.
"""

import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from gpt2_jax import InputError, compilation_cache
from gpt2_jax.config import Config, parse_flags
from gpt2_jax.training import distributed
from gpt2_jax.training.memory import keep_freed_memory
from gpt2_jax.training.watchdog import STAYS, exit_code

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, such as configs/quickstart.py.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; a run found there goes on.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --config.training.steps=100")
    compilation_cache.enable()
    keep_freed_memory()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow's notes on what it was built for, and on oneDNN,
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # which moving tokens about has no use for
    options, workdir = CONFIG.value.to_dict(), Path(WORKDIR.value)
    process = distributed.Process()
    try:
        # Before TensorFlow is imported, which takes seconds: what is wrong with the options, and who the others are.
        process = distributed.start(Config.from_dict(options).distributed)
        from gpt2_jax.training.loop import train

        outcome = train(options, workdir)
    except InputError as error:
        print(f"{process.prefix}error: {error}", file=sys.stderr)
        return process.exit_code(2)
    except OSError as error:
        saved = "what was saved stays: put it right and run the same command again"
        print(f"{process.prefix}error: {error}; {saved}", file=sys.stderr)
        return process.exit_code(2)
    except KeyboardInterrupt as error:
        print(f"{process.prefix}interrupted, without saving; {STAYS}", file=sys.stderr)
        return process.exit_code(exit_code(error))
    except Exception:
        process.exit_code(1)  # after the traceback, where the others do not end
        raise
    if outcome.signal is not None:
        if process.index == 0:
            print(f"stopped and saved at step {outcome.step}; to go on, run the same command again")
        return 128 + outcome.signal
    if process.index == 0:
        best, which = "", ""
        if outcome.best is not None:
            best, which = "; the best by validation loss is step {} ({:.4f})".format(*outcome.best), " --step=best"
        generate = f"python scripts/generate.py --workdir={workdir}{which}"
        print(f"done: {outcome.step} steps in {workdir}{best}; next: {generate}")
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=parse_flags)

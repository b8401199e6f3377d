"""scripts/train.py with accidents: `python tests/sabotage.py TRAIN.PY OPTION...`.

The file that the variable SABOTAGE names has lines [start, process, batch, what] of JSON, counted from 0: what a
process does to itself instead of taking a batch: "hang", or the name of a signal.
"""

import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

from gpt2_jax.training.run import Run


class Watched:
    """The batches `of` a run, and what happens before some of them."""

    def __init__(self, of, accidents):
        self._of, self._accidents, self._taken = of, accidents, 0

    def __getattr__(self, name):
        return getattr(self._of, name)

    def __next__(self):
        what = self._accidents.get(self._taken)
        self._taken += 1
        if what is not None:
            print(f"{what} at {time.time()}", flush=True)
        if what == "hang":
            time.sleep(3600)
        elif what is not None:
            os.kill(os.getpid(), getattr(signal, what))
        return next(self._of)


def main() -> None:
    plan, process = Path(os.environ["SABOTAGE"]), int(os.environ.get("JAX_PROCESS_ID", "0"))
    starts = plan.with_name(f"starts-{process}")
    start = int(starts.read_text()) if starts.exists() else 0
    starts.write_text(str(start + 1))
    accidents = {
        batch: what
        for at, who, batch, what in map(json.loads, plan.read_text().splitlines())
        if (at, who) == (start, process)
    }
    plain = Run.batches
    Run.batches = lambda *args: Watched(plain(*args), accidents)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

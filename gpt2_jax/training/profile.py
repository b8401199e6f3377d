"""A window of a run traced by `jax.profiler`: what host and device do, step by step, for TensorBoard or Perfetto."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from gpt2_jax.config import ProfileConfig


class Trace:
    """The trace of `config.steps` steps from `config.start` on, written to `folder`; of each process.

    Args:
      config: which steps.
      folder: made when the trace is written; `tensorboard --logdir` opens it (with the plugin "xprof"). Each of several
        processes has a folder of its own within, `process-0` and so on, as they may share a host and its name.
      first: steps done before this run.
      say: is given a line when there is a trace, or cannot be one.
    """

    def __init__(self, config: ProfileConfig, folder: Path, first: int, say: Callable[[str], None]):
        several = jax.process_count() > 1
        self._folder = folder / f"process-{jax.process_index()}" if several else folder
        self._config, self._say = config, say
        self._running = False
        if 0 < config.start <= first:
            say(f"nothing is traced: profile.start ({config.start}) is before this run, which goes on from {first}")

    def moves(self, step: int, pending: Any) -> bool:
        """Starts or stops the trace if it is time, before step `step` + 1 is dispatched; whether it did.

        Args:
          step: steps dispatched.
          pending: a result of the last of them, waited for so that the trace holds whole steps.
        """
        start = step + 1 == self._config.start
        stop = self._running and step + 1 == self._config.start + self._config.steps
        if start or stop:
            jax.block_until_ready(pending)
        if stop:
            self.close()
        if start:
            jax.profiler.start_trace(self._folder)
            self._running = True
        return start or stop

    def close(self) -> None:
        """Writes the trace if one is under way, as when the run ends within the window."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            self._say(f"traced steps from {self._config.start} on into {self._folder}")

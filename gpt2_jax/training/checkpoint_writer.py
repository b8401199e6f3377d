"""Checkpoints of a run that saves: asynchronous; the newest and the best are kept; disks may fail, be full, or slow.

What they hold and how they are read is in checkpoint.py.
"""

import contextlib
import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from gpt2_jax.config import CheckpointConfig
from gpt2_jax.errors import InputError
from gpt2_jax.training import seal
from gpt2_jax.training.checkpoint import TO_READ, Checkpoints, all_but_model
from gpt2_jax.training.step import TrainState

TO_GO_ON = (*TO_READ, "training")
NOTHING, ALL_DAMAGED = -1, -2  # instead of a step, among processes

DISK_FAILURES = (
    *("No space left", "File too large", "quota exceeded", "Permission denied", "Read-only", "Input/output"),
    *("Stale file handle", "Transport endpoint is not connected", "No such device"),
)
AGAIN = "make room and run the same command again, and it goes on from there"
SLOW = 30.0  # seconds that a save may wait for the one before it without a word


class CheckpointWriter(Checkpoints):
    """The checkpoints of a run that goes on and saves; a context manager that waits for the last save."""

    def __init__(self, workdir: Path, config: CheckpointConfig, tell: Callable[[str], None] = logging.warning):
        """Opens them; makes their folder where there is none.

        Args:
          workdir: of a run.
          config: what is kept, and whether a save that fails stops the run.
          tell: is given a line about a save that failed, or that was slow.

        Raises:
          InputError: a checkpoint at which Orbax fails.
        """
        self._config, self._tell = config, tell
        self._saving: int | None = None  # the step of the last save
        super().__init__(workdir)

    def _open(self, *, clean: bool = True) -> ocp.CheckpointManager:
        return self._manager_with(preservation_policy=_policy(self._config), cleanup_tmp_directories=clean)

    def __exit__(self, *_: Any) -> None:
        with self._failures_explained():  # a save still under way fails here
            super().__exit__()

    def find_to_go_on(self, tell: Callable[[str], None]) -> int:
        """The newest step that is not damaged, for all processes of a run; those after it are put aside.

        They go to `<workdir>/damaged`: the run is about to save these steps again.

        Raises:
          InputError: all are damaged.
        """
        found, failure = -1, None
        if jax.process_index() == 0:
            try:
                found = self.find(None, tell, TO_GO_ON)
            except InputError as error:
                failure = error
        found = _of_process_0(found)
        if found < 0:
            raise failure or InputError(f"{self.directory} has no checkpoint that is not damaged, as process 0 tells")
        if bad := [step for step in self.steps if step > found]:
            if jax.process_index() == 0:
                for step in bad:
                    tell(f"it is now in {self._put_aside(step)}; going on from step {found}")
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged checkpoints put aside")
            self._manager.reload()
        return found

    def find_to_roll_back(self, newest: int, every: int, tell: Callable[[str], None]) -> int | None:
        """The newest step up to `newest` that is not damaged, for all processes of a run; None if nothing is saved yet.

        What an interruption saved, between the steps that are saved `every` so many, comes after those: a run that was
        interrupted is to go back as far as one that was not. Where all are newer the oldest has to do.

        Raises:
          InputError: all are damaged.
        """
        before = [step for step in self.steps if step <= newest]
        before.sort(key=lambda step: (every == 0 or step % every == 0, step), reverse=True)
        candidates, found = [*before, *(step for step in self.steps if step > newest)], NOTHING
        if candidates and jax.process_index() == 0:
            good, _ = self._first_good(candidates, TO_GO_ON, tell)
            found = ALL_DAMAGED if good is None else good
        found = _of_process_0(found)
        if found == ALL_DAMAGED:
            raise InputError(
                f"{self.directory} has no checkpoint to go back to that is not damaged: bring back a copy of one, or "
                "train anew in another --workdir"
            )
        return None if found == NOTHING else found

    def _put_aside(self, step: int) -> Path:
        folder = self.directory.parent / "damaged"
        folder.mkdir(exist_ok=True)
        names = (f"{step}{suffix}" for suffix in itertools.chain([""], map("-{}".format, itertools.count(2))))
        aside = next(folder / name for name in names if not (folder / name).exists())
        return (self.directory / str(step)).rename(aside)

    def save(
        self,
        state: TrainState,
        config: dict[str, Any],
        tokenizer: str,
        val_loss: float | None,
        stream: dict[str, Any] | None = None,
        evaluations: dict[str, Any] | None = None,
        base: dict[str, Any] | None = None,
    ) -> None:
        """Starts to write the whole state, and what else there is to know; returns once it is safe to change it.

        Raises:
          InputError: this save or the one before failed (a full disk), and that is to stop the run; the older
            checkpoints are untouched.
        """
        step = int(state.step)
        if step in self.steps:
            return
        began = time.monotonic()
        with self._survived():
            self._manager.wait_until_finished()
        if (waited := time.monotonic() - began) > SLOW:
            self._tell(
                f"the checkpoint of step {step} waited {waited:,.0f} s for the one before it to be written: the disk "
                f"is slow for a checkpoint.every of {self._config.every}"
            )
        items = (("stream", stream), ("evaluations", evaluations), ("base", base))
        more = {name: item for name, item in items if item is not None}
        items = ocp.args.Composite(
            **{name: ocp.args.JsonSave(item) for name, item in more.items()},
            model=ocp.args.StandardSave(state.model),
            training=ocp.args.StandardSave(all_but_model(state)),
            config=ocp.args.JsonSave(config),
            tokenizer=ocp.args.JsonSave({"tokenizer.json": tokenizer}),
        )
        self._saving = step
        with self._survived():
            metrics = None if val_loss is None else {"val_loss": val_loss}
            marked = {"format": seal.FORMAT}
            self._manager.save(step, args=items, metrics=metrics, force=True, custom_metadata=marked)

    def wait(self) -> None:
        """Returns when all that was saved is on disk; raises like `save`."""
        with self._failures_explained():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _survived(self) -> Iterator[None]:
        """A save without which the run may go on, if `checkpoint.on_failure` says so."""
        goes_on = self._config.on_failure == "go_on"
        try:
            with self._failures_explained("training goes on, and saves the next that is due" if goes_on else AGAIN):
                yield
        except InputError as error:
            if not goes_on:
                raise
            self._tell(str(error))
            with contextlib.suppress(Exception):  # what was wrong is told
                self._manager.close()
            # What was half written takes up room; threads of the save that failed may still be at it, so that a rest
            # of it may stay until the run begins again.
            for path in self.directory.glob("*orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)
            self._manager = self._open(clean=False)  # the old one thinks that it has this checkpoint

    @contextlib.contextmanager
    def _failures_explained(self, then: str = AGAIN) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # TensorStore reports a full disk as a ValueError
            reason = next((reason for reason in DISK_FAILURES if reason in str(error)), None)
            if reason is None:
                raise
            # What is there, not what the manager remembers: it has forgotten those that this save was to replace.
            steps = sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())
            kept = f"steps {', '.join(map(str, steps))} are untouched" if steps else "none was there before"
            raise InputError(
                f"could not save the checkpoint of step {self._saving} to {self.directory}: {reason}; {kept}: {then}"
            ) from error


def _of_process_0(step: int) -> int:
    """The number that process 0 has, in all processes of a run."""
    return int(multihost_utils.broadcast_one_to_all(np.int64(step))) if jax.process_count() > 1 else step


def _policy(config: CheckpointConfig) -> policies.PreservationPolicy:
    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics["val_loss"],
        reverse=True,
        n=config.keep_best,
        keep_checkpoints_without_metrics=False,
    )
    # Besides what interruptions saved: a run goes back to the same ones, see `find_to_roll_back`.
    due = [policies.EveryNSteps(config.every, max_to_keep=config.keep)] if config.every else []
    for_good = [policies.EveryNSteps(config.keep_every)] if config.keep_every else []
    return policies.AnyPreservationPolicy([policies.LatestN(config.keep), best, *due, *for_good])

"""What a run does about bad numbers, from mild to severe; the guard of the training step is the first rung.

1. A step whose loss or gradient norm is bad is skipped (guard.py): it changes neither parameters nor optimizer.
2. After `guard.skips` of them in a row, or a validation loss that is not finite, the run goes on with the parameters
   and the optimizer of a checkpoint, on the text that comes next: the batches since that checkpoint are jumped over,
   as for PaLM (Chowdhery et al., 2022, section 5.1).
3. Where it would do so more than `guard.rollbacks` times, it writes down what it saw, and stops.

All of it follows from the steps' own numbers, so every process of a run decides alike at the same step, and a run that
was killed decides once more as it did before.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.sharding import on_one_device
from gpt2_jax.training.checkpoint_writer import CheckpointWriter
from gpt2_jax.training.guard import GuardState, rolled_back
from gpt2_jax.training.metrics import MetricWriter
from gpt2_jax.training.run import Run, check_finite
from gpt2_jax.training.step import Batch, TrainState


class Done(NamedTuple):
    """A step that was dispatched: its number, counted from 1, its metrics and its batch."""

    step: int
    values: dict[str, Any]
    batch: Batch


class Ladder:
    """The second and the third rung of a run.

    Args:
      run: whose config has the group `guard`.
      checkpoints: to go back to.
      workdir: where `bad_numbers/` is made.
      state: that the run begins with.

    Attributes:
      due: the step after which the run is to go back to a checkpoint. It is always the one after the last of a row of
        skipped steps, which runs by the time that their metrics are known.
    """

    def __init__(self, run: Run, checkpoints: CheckpointWriter, workdir: Path, state: TrainState):
        self._run, self._checkpoints, self._workdir = run, checkpoints, workdir
        self._config = run.config.guard
        self._skipped: Done | None = None  # the last step that is known, if it was skipped
        in_a_row = self._config.skips and int(state.guard.row) >= self._config.skips
        self.due = int(state.step) + 1 if in_a_row else None

    def see(self, done: Done) -> None:
        """Tells of a step that was skipped, and takes note of what follows from it.

        Raises:
          InputError: its loss or gradient norm is not finite, and the guard is off.
        """
        if not self._config.skips:
            for name, value in (("loss", done.values["loss"]), ("gradient norm", done.values["grad_norm"])):
                check_finite(name, float(value), done.step, self._run.config)
            return
        row = int(done.values["guard"].row)
        bad = 0 < row <= self._config.skips  # after that a step is skipped whatever its numbers are
        self._skipped = done if bad else None
        if bad:
            numbers = describe(done.values, self._config.window)
            self._run.tell(f"step {done.step:>6}  skipped, {row} in a row: {numbers}")
        if bad and row == self._config.skips:
            self.due = done.step + 1

    def validate(self, state: TrainState, done: Done, writer: MetricWriter) -> tuple[TrainState, float]:
        """The validation loss, and the state that has it: rolled back, if it was not finite before.

        Raises:
          InputError: it is not finite, and the guard is off; or as `roll_back`.
        """
        while not math.isfinite(loss := self._run.validate(state, writer)):
            if not self._config.skips:
                check_finite("validation loss", loss, done.step, self._run.config)
            state = self.roll_back(state, done, f"the validation loss is {loss}")
        return state, loss

    def roll_back(self, state: TrainState, done: Done, why: str = "") -> TrainState:
        """`state`, which is donated, with the parameters and the optimizer of a checkpoint; its step stays.

        It is the newest good one at or before the last update; with none, the initial parameters are made again.

        Args:
          done: the last step.
          why: other than skipped steps.

        Raises:
          InputError: so many have been tried, or a save failed.
        """
        self.due = None
        tried, step = int(state.guard.rollbacks), done.step
        if tried >= self._config.rollbacks:
            self._stop(self._skipped or done, tried, why or f"{self._config.skips} steps in a row were skipped")
        self._checkpoints.wait()
        found = self._checkpoints.find_to_roll_back(
            int(state.guard.good), self._run.config.checkpoint.every, self._run.tell
        )
        for leaf in jax.tree.leaves((state.model, state.opt_state)):
            leaf.delete()  # room for those that are read
        then = self._run.fresh_state() if found is None else self._run.restored(self._checkpoints, found)
        to = found or 0
        shifted = any(to <= shift <= step for shift, _ in self._run.config.data.reweighing[1:])
        shardings = self._run.program.shardings.guard
        # With numbers of Python, whose types are weak, the training step would be compiled once more.
        numbers = np.int32(to), np.bool_(shifted)
        guard = jax.jit(rolled_back, out_shardings=shardings)(state.guard, then.guard, state.step, *numbers)
        where = "the initial parameters" if found is None else f"the parameters and the optimizer of step {to}"
        self._run.tell(
            f"step {step:>6}  rolled back ({tried + 1} of {self._config.rollbacks}{f': {why}' if why else ''}): it goes"
            f" on with {where}, and with the text after step {step}"
        )
        return then._replace(step=state.step, guard=guard)

    def _stop(self, done: Done, tried: int, why: str) -> NoReturn:
        folder = self._workdir / "bad_numbers" / f"step-{done.step}"
        batch = on_one_device(done.batch, self._run.program.mesh)
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(folder / "batch.npz", **{name: np.asarray(array) for name, array in batch.items()})
            numbers = {"step": done.step, "why": why, **report(done.values), "options": vars(self._config)}
            (folder / "report.json").write_text(json.dumps(numbers, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        options = self._run.config.optimizer
        raise InputError(
            f"stopped at step {done.step}: {why}, and going back to a checkpoint has been tried {tried} times of "
            f"guard.rollbacks ({self._config.rollbacks}); {describe(done.values, self._config.window)}. The batch and "
            f"all numbers are in {folder}, and the checkpoints are untouched: look at that text, then run again with a "
            f"lower optimizer.learning_rate ({options.learning_rate}) or a longer optimizer.warmup_steps "
            f"({options.warmup_steps}), or, if such numbers are nothing unusual, a higher guard.sigmas "
            f"({self._config.sigmas})"
        )


def usual(guard: GuardState) -> dict[str, tuple[float, float]]:
    """{name: (mean, deviation)} of what the guard has seen."""
    mean, deviation = np.asarray(guard.mean).tolist(), np.sqrt(np.asarray(guard.variance)).tolist()
    return dict(zip(("loss", "grad_norm"), zip(mean, deviation)))


def describe(values: dict[str, Any], window: int) -> str:
    """The numbers of a step, and what is usual where that is known, in one line."""
    known = usual(values["guard"]) if int(values["guard"].count) >= window else {}
    texts = []
    for name, value in (("loss", values["loss"]), ("grad_norm", values["grad_norm"])):
        normal = " (usually {:.4g}, deviation {:.2g})".format(*known[name]) if name in known else ""
        texts.append(f"{name.replace('grad_', 'gradient ')} {float(value):.4g}{normal}")
    return ", ".join(texts)


def report(values: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a step for JSON, which knows no numbers that are not finite: they are texts here."""
    guard: GuardState = values["guard"]
    plain = lambda value: value if math.isfinite(value) else str(value)
    statistics = {name: {"mean": mean, "deviation": deviation} for name, (mean, deviation) in usual(guard).items()}
    return {
        **{name: plain(float(values[name])) for name in ("loss", "grad_norm", "learning_rate")},
        "usual": statistics | {"steps": int(guard.count)},
        "skipped_in_a_row": int(guard.row),
        "skipped_steps": int(guard.skipped),
        "rollbacks": int(guard.rollbacks),
    }

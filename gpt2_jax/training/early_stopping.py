"""Early stopping: a run ends when its validation loss has not fallen for so many evaluations.

What it knows is in every checkpoint and follows from the losses alone, so that a run that was killed, and every process
of a run, decides alike.
"""

import dataclasses
import math
from typing import Any, get_args

from gpt2_jax.errors import InputError, shown


@dataclasses.dataclass
class EarlyStopping:
    """The evaluations of a run so far.

    Attributes:
      patience: evaluations without a lower loss that end the run; 0 never does, and nothing is kept.
      best_step, best_loss: of the lowest validation loss, in nats a token; None before the first evaluation.
      worse: evaluations since then.
      val_loss: of the last evaluation.
      train_loss: the mean over the steps between the last two evaluations; None before there were.
      sum, count: of the training losses since the last evaluation.
    """

    patience: int
    best_step: int | None = None
    best_loss: float | None = None
    worse: int = 0
    val_loss: float | None = None
    train_loss: float | None = None
    sum: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, patience: int, saved: dict[str, Any] | None) -> "EarlyStopping":
        """Goes on from what `saved` gave, None where nothing is known.

        Raises:
          InputError: that is damaged.
        """
        if not patience or saved is None:
            return cls(patience)
        kinds = {field.name: get_args(field.type) or (field.type,) for field in dataclasses.fields(cls)}
        del kinds["patience"]
        if saved.keys() != kinds.keys() or any(type(saved[name]) not in kind for name, kind in kinds.items()):
            raise InputError(
                f"the checkpoint has the evaluations {shown(saved)}, which are none; use another checkpoint, or go on "
                "with --config.evaluation.patience=0"
            )
        return cls(patience, **saved)

    def saved(self) -> dict[str, Any] | None:
        """What a checkpoint needs to know, for JSON."""
        known = dataclasses.asdict(self)
        return known if known.pop("patience") else None

    def train(self, loss: float) -> None:
        """Tells of a step's loss; of one that was skipped it may be anything."""
        if self.patience and math.isfinite(loss):
            self.sum, self.count = self.sum + loss, self.count + 1

    def evaluate(self, step: int, val_loss: float) -> tuple[bool, str]:
        """Tells of a validation loss, and returns (whether it is the lowest so far, a line if the run overfits)."""
        if not self.patience:
            return False, ""
        fell = self.best_loss is None or val_loss < self.best_loss
        self.worse = 0 if fell else self.worse + 1
        lowest = fell or val_loss == self.best_loss  # of equals the last is the best, as for `Checkpoints`
        if lowest:
            self.best_step, self.best_loss = step, val_loss
        train_loss = self.sum / self.count if self.count else None
        line, before = "", (self.val_loss, self.train_loss)
        if None not in (train_loss, *before) and val_loss > before[0] and train_loss < before[1]:
            line = (
                f"step {step:>6}  overfitting: the validation loss rose from {before[0]:.4f} to {val_loss:.4f} while "
                f"the training loss fell from {before[1]:.4f} to {train_loss:.4f}; the best is that of step "
                f"{self.best_step}"
            )
        self.val_loss, self.train_loss, self.sum, self.count = val_loss, train_loss, 0.0, 0
        return lowest, line

    @property
    def stops(self) -> bool:
        """Whether the run is to end."""
        return 0 < self.patience <= self.worse

    @property
    def why(self) -> str:
        """The line about that end."""
        return (
            f"stopped: the validation loss has not fallen for {self.worse} evaluations (evaluation.patience is "
            f"{self.patience}); the best, {self.best_loss:.4f}, is that of step {self.best_step}. To train on, raise "
            "evaluation.patience"
        )

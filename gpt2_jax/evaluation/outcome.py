"""What evaluating gives: figures with their standard errors, and counts."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from gpt2_jax.evaluation.humaneval import Drawing
from gpt2_jax.evaluation.sandbox import Limits


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number and its standard error; NaN where one example tells of none."""

    value: float
    error: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Figures and counts, each by its name."""

    figures: dict[str, Figure]
    counts: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a task is run.

    Attributes:
      batch_size: sequences that run together.
      limit: examples at most; None is all.
      context, stride: of texts, see `perplexity`.
      detokenize: write the text as people do; None is as the task says.
      partial: of texts, the file of partial sums.
      drawing: of code, how it is drawn; None is as its fields' defaults say.
      execute: code that was drawn; it is refused otherwise.
      limits: of what is executed.
      progress: told how much is done, how much there is, and of what.
    """

    batch_size: int = 8
    limit: int | None = None
    context: int | None = None
    stride: int | None = None
    detokenize: bool | None = None
    partial: Path | None = None
    drawing: Drawing | None = None
    execute: bool = False
    limits: Limits | None = None
    progress: Callable[[int, int, str], None] | None = None


def share(hits: Sequence[bool]) -> Figure:
    """The share of examples that are right."""
    n, p = len(hits), float(np.mean(hits))
    return Figure(p, math.sqrt(p * (1 - p) / (n - 1)) if n > 1 else math.nan)


def perplexity_of(nats: Sequence[float]) -> Figure:
    """The exponential of the mean over examples; its error to first order, as lm-evaluation-harness gives it."""
    n, mean = len(nats), float(np.mean(nats))
    value = math.exp(mean) if mean < 700 else math.inf
    return Figure(value, value * float(np.std(nats, ddof=1)) / math.sqrt(n) if n > 1 else math.nan)

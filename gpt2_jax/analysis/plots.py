"""Pictures: arrays or files in, image files out."""

import math
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter

from gpt2_jax import json_files

HIGHEST = 20.0  # nats a token; higher losses, of steps that were skipped, would make the picture one of them alone


def perplexity_curve(metrics: Path, picture: Path) -> None:
    """Draws the perplexity of training and validation over the steps of a run.

    Args:
      metrics: a run's metrics.jsonl, lines with `step` and `train_loss` or `val_loss` in nats a token.
        Lines and losses that are damaged or not finite are left out.
      picture: where to write, the suffix decides the format (.png, .svg, .pdf).

    Raises:
      InputError: there are no metrics.
    """
    lines = [values for _, values in json_files.lines(metrics) if type(values.get("step")) is int]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, label, style in (
        ("train_loss", "training", {"color": "#9ecae1", "linewidth": 1}),
        ("val_loss", "validation", {"color": "#08519c", "linewidth": 2, "marker": "o", "markersize": 4}),
    ):
        points = [(line["step"], math.exp(line[name])) for line in lines if _can_be_drawn(line["step"], line.get(name))]
        if points:
            axes.plot(*zip(*points), label=label, **style)
            if name == "val_loss":
                step, last = points[-1]
                axes.annotate(f"{last:.2f}", (step, last), xytext=(0, 8), textcoords="offset points", ha="right")
    axes.set(xlabel="step", ylabel="perplexity per token", yscale="log", title=metrics.absolute().parent.name)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=150)


def _can_be_drawn(step: int, loss: object) -> bool:
    """Whether the step and the perplexity are in the bounds of float64, with room for the axes, and not too high."""
    return 0 <= step < 2**53 and isinstance(loss, float) and -300 < loss < HIGHEST

"""Curves of training, read from the metrics.jsonl of runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

from gpt2_jax import json_files
from gpt2_jax.analysis.plots import COLOURS, Picture, image, logarithmic, plain
from gpt2_jax.errors import InputError, check

HIGHEST = 20.0  # nats a token; higher losses, of steps that were skipped, would make the picture one of them alone
MARKERS = "os^Dv*P"  # of validation, one a run
SMOOTHED = 60  # points of a curve from which on its mean is drawn beside it
WINDOW = 0.05  # of all steps, over which that mean is taken
WIDE = 10.0  # a range of gradient norms, highest over lowest, from which on its axis is logarithmic

Points = dict[int, float]  # step -> value


def read(metrics: Path) -> dict[str, Points]:
    """The curves in a run's metrics.jsonl by name, in the order of steps.

    Of a step that comes again, as after an interruption, the later line counts. Lines, steps and values that are
    damaged or not finite are left out, and so are losses above `HIGHEST`.

    Raises:
      InputError: the file cannot be read.
    """
    curves: dict[str, Points] = {}
    for _, values in json_files.lines(metrics):
        step = values.get("step")
        if type(step) is not int or not 0 <= step < 2**53:  # float64 has room for no more
            continue
        for name, value in values.items():
            if name != "step" and _can_be_drawn(name, value):
                curves.setdefault(name, {})[step] = float(value)
    return {name: dict(sorted(points.items())) for name, points in curves.items()}


def curves(workdirs: str | Path | Sequence[str | Path]) -> Picture:
    """Loss, perplexity, learning rate, gradient norm and tokens a second over the steps of one or several runs.

    Args:
      workdirs: a run's folder, or several, at most one for each of the `COLOURS`.

    Raises:
      InputError: no runs, too many, one twice, or one whose metrics cannot be read or hold no curve.
    """
    folders = [Path(workdirs)] if isinstance(workdirs, (str, Path)) else [Path(folder) for folder in workdirs]
    check(1 <= len(folders) <= len(COLOURS), "the number of runs", len(folders), f"from 1 to {len(COLOURS)}")
    check(len(set(folders)) == len(folders), "workdir", ",".join(map(str, folders)), "each run once")
    runs = {name: read(folder / "metrics.jsonl") for name, folder in zip(_names(folders), folders)}
    for folder, run in zip(folders, runs.values()):
        if not run.keys() & {"train_loss", "val_loss"}:
            raise InputError(f"{folder / 'metrics.jsonl'} holds no losses; give the folder of a run that has trained")
    return _draw(runs)


def perplexity_curve(metrics: Path, picture: Path) -> None:
    """Draws the perplexity of training and validation over the steps of a run.

    Args:
      metrics: a run's metrics.jsonl, see `read`.
      picture: where to write, the suffix decides the format (.png, .svg, .pdf).

    Raises:
      InputError: there are no metrics.
    """
    run, figure = read(metrics), Picture(8, 4.5)
    axes = figure.add_subplot()
    for name, label, style in (
        ("train_loss", "training", {"color": "#9ecae1", "linewidth": 1}),
        ("val_loss", "validation", {"color": "#08519c", "linewidth": 2, "marker": "o", "markersize": 4}),
    ):
        if points := run.get(name):
            steps, perplexities = list(points), np.exp(list(points.values()))
            axes.plot(steps, perplexities, label=label, **style)
            if name == "val_loss":
                last = perplexities[-1]
                axes.annotate(f"{last:.2f}", (steps[-1], last), xytext=(0, 8), textcoords="offset points", ha="right")
    axes.set(ylabel="perplexity per token", title=plain(metrics.absolute().parent.name))
    _over_steps(axes)
    logarithmic(axes)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False)
    picture.write_bytes(image(figure, picture.suffix))


def _draw(runs: Mapping[str, Mapping[str, Points]]) -> Picture:
    figure = Picture(11, 9)
    panels = figure.subplots(3, 2, sharex=True)
    (loss, perplexity), (rate, norm), (speed, legend) = panels
    window = max(1, round(WINDOW * max(max(points) for run in runs.values() for points in run.values())))
    smoothed = False
    for run, colour, marker in zip(runs.values(), COLOURS, MARKERS):
        trained, validated = run.get("train_loss", {}), run.get("val_loss", {})
        validation = {"color": colour, "marker": marker, "markersize": 5, "linestyle": "--", "linewidth": 1}
        for axes, of in ((loss, np.positive), (perplexity, np.exp)):
            smoothed |= _plot(axes, trained, colour, window, of)
            axes.plot(list(validated), of(list(validated.values())), **validation)
        rates = run.get("learning_rate", {})
        rate.plot(list(rates), list(rates.values()), color=colour, linewidth=1.5)
        smoothed |= _plot(norm, run.get("grad_norm", {}), colour, window)
        smoothed |= _plot(speed, run.get("tokens_per_second", {}), colour, window)
        if skipped := _rises(run.get("skipped_steps", {})):
            bottom = loss.get_xaxis_transform()
            loss.plot(skipped, [0.03] * len(skipped), "x", color=colour, markersize=6, transform=bottom)
    for axes, title in (
        (loss, "loss, nats per token"),
        (perplexity, "perplexity per token"),
        (rate, "learning rate"),
        (norm, "gradient norm, before clipping"),
        (speed, "training speed, tokens per second"),
    ):
        axes.set_title(title, loc="left", fontsize=11)
        axes.grid(alpha=0.3)
        axes.tick_params(labelbottom=True)
        _over_steps(axes)
    logarithmic(perplexity)
    low, high = norm.dataLim.intervaly
    if 0 < low < high / WIDE:
        logarithmic(norm)
    rate.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    speed.yaxis.set_major_formatter(EngFormatter(sep=""))
    speed.set_ylim(bottom=0)
    _explain(legend, runs, f"its mean over the {window:,} steps around" if smoothed else "")
    return figure


def _over_steps(axes: Axes) -> None:
    """Makes the steps of a run the x axis: whole numbers, also where there are few."""
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))


def _plot(axes: Axes, points: Points, colour: str, window: int, of: np.ufunc = np.positive) -> bool:
    """Draws `of` a curve that jumps; where it has many points faintly, and thick of its mean over `window` steps."""
    steps, values = np.array(list(points)), np.array(list(points.values()))
    if len(steps) < SMOOTHED:
        axes.plot(steps, of(values), color=colour, linewidth=1.5)
        return False
    axes.plot(steps, of(values), color=colour, linewidth=0.7, alpha=0.3, rasterized=len(steps) > 5_000)
    first, last = (
        np.searchsorted(steps, steps + side, way) for side, way in ((-window / 2, "left"), (window / 2, "right"))
    )
    sums = np.concatenate([[0.0], np.cumsum(values)])
    axes.plot(steps, of((sums[last] - sums[first]) / (last - first)), color=colour, linewidth=1.8)
    return True


def _explain(axes: Axes, runs: Mapping[str, Mapping[str, Points]], mean: str) -> None:
    """Makes of `axes` the legend: the runs' colours, and what the kinds of lines are."""
    axes.set_axis_off()
    handles, labels = [], []
    for (name, run), colour, marker in zip(runs.items(), COLOURS, MARKERS):
        validated = run.get("val_loss", {})
        best = f": lowest validation loss {min(validated.values()):.3f}" if validated else ""
        handles.append(Line2D([], [], color=colour, marker=marker, linewidth=2))
        labels.append(plain(name) + best)
    grey = {"color": "#555555"}
    handles += [Line2D([], [], **grey), Line2D([], [], linestyle="--", marker="o", markersize=4, linewidth=1, **grey)]
    labels += ["training", "validation"]
    if mean:
        handles[-2:-2] = [Line2D([], [], linewidth=0.7, alpha=0.5, **grey)]
        labels[-2:-1] = ["training, each line of the metrics", mean]
    if any(_rises(run.get("skipped_steps", {})) for run in runs.values()):
        handles.append(Line2D([], [], linestyle="", marker="x", **grey))
        labels.append("steps were skipped")
    axes.legend(handles, labels, loc="center left", frameon=False).set_in_layout(False)  # it may be wider


def _rises(counts: Points) -> list[int]:
    """The steps at which a count is higher than at the one before."""
    before, found = 0.0, []
    for step, count in counts.items():
        if count > before:
            found.append(step)
        before = count
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """The runs' folders by their last names, or by the whole paths where those are alike."""
    last = [folder.absolute().name for folder in folders]
    return last if len(set(last)) == len(last) else [str(folder) for folder in folders]


def _can_be_drawn(name: str, value: object) -> bool:
    """Whether a value is in the bounds of float64, with room for the axes, and, if a loss, not too high."""
    if type(value) not in (int, float):
        return False
    return -300 < value < HIGHEST if name.endswith("_loss") else -1e300 < value < 1e300

"""Attention drawn: arrays of attention_maps.py in, figures out.

Weights and scores are drawn on a scale of square roots from 0 to 1, the same in every picture: the many small ones are
seen beside the few large ones.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.image import AxesImage

from gpt2_jax.analysis.attention_maps import STATISTICS, AttentionMap, HeadStatistics
from gpt2_jax.analysis.plots import Picture
from gpt2_jax.analysis.token_labels import FONT, drawable, shortened
from gpt2_jax.errors import check

COLOURS = "cividis"  # the same to those who see no red or green
MOST_LABELS = 90  # on an axis
LONGEST_LABEL = 14  # characters
MOST_PIXELS = 192  # of a small map's side
SCORES = ("previous_token", "first_token", "induction")  # in [0, 1]
WRITTEN = 160  # heads whose numbers are written beside their colours


def head_map(attention: AttentionMap, head: int) -> Picture:
    """Token by token, how much each (a row) attends to those before it (the columns), by one head.

    Raises:
      InputError: no such head.
    """
    H, T = attention.weights.shape[:2]
    check(type(head) is int and 0 <= head < H, "head", head, f"from 0 to {H - 1}")
    side = float(np.clip(2.5 + 0.17 * T, 4.5, 12))
    figure = Picture(side + 1, side)
    axes = figure.add_subplot()
    drawn = _draw(axes, attention.weights[head])
    label_tokens(axes, attention.labels, "x")
    label_tokens(axes, attention.labels, "y")
    axes.set(xlabel="attends to", ylabel="token", title=f"layer {attention.layer}, head {head}")
    figure.colorbar(drawn, ax=axes, label="attention", shrink=0.7)
    return figure


def layer_grid(attention: AttentionMap) -> Picture:
    """The maps of all heads of a layer; of more than 192 tokens a pixel shows the largest weight of several."""
    H, T = attention.weights.shape[:2]
    columns = int(np.ceil(np.sqrt(H)))
    rows = -(-H // columns)
    figure = Picture(1.7 + 2.3 * columns, 0.8 + 2.45 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[H:]:
        axes.remove()
    for head, axes in enumerate(grid.flat[:H]):
        drawn = _draw(axes, _pooled(attention.weights[head]), tokens=T)
        axes.set_title(f"head {head}", fontsize=10)
        axes.tick_params(labelbottom=head >= H - columns)  # where no other is below
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=4)
        axes.yaxis.get_major_locator().set_params(integer=True, nbins=4)
    figure.suptitle(f"layer {attention.layer}, {T} tokens")
    figure.supxlabel("attends to (place)", fontsize=10)
    figure.supylabel("token (place)", fontsize=10)
    figure.colorbar(drawn, ax=list(grid.flat[:H]), label="attention", shrink=0.6, aspect=30)
    return figure


def statistics_grid(statistics: HeadStatistics) -> Picture:
    """A map of layers and heads for each statistic."""
    L, H = statistics.entropy.shape
    width, height = np.clip(0.32 * H, 2.6, 8), np.clip(0.26 * L, 1.6, 9)
    figure = Picture(3 * (width + 1.2), 2 * (height + 1.1))
    grid = figure.subplots(2, 3).flat
    for (name, title), axes in zip(STATISTICS.items(), grid):
        values = getattr(statistics, name)
        scale = {"norm": _scale()} if name in SCORES else {"vmin": 0}
        drawn = axes.imshow(values, COLOURS, aspect="auto", **scale)
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="head", ylabel="layer")
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
        figure.colorbar(drawn, ax=axes)
        if L * H <= WRITTEN:
            _write_numbers(axes, drawn, values)
    grid[-1].axis("off")
    at = {"va": "top", "transform": grid[-1].transAxes, "in_layout": False}  # it takes no room from the maps
    grid[-1].text(0, 1, _explained(statistics), fontsize=9, linespacing=1.5, **at)
    return figure


def label_tokens(axes: Axes, labels: list[str], axis: str) -> None:
    """Labels an axis ("x" or "y") with its tokens; of more than 90 with every second, third ..., and its place."""
    step = -(-len(labels) // MOST_LABELS)
    shown = [shortened(drawable(label), LONGEST_LABEL) for label in labels[::step]]
    if step > 1:
        shown = [f"{i * step} {label}" for i, label in enumerate(shown)]
    places = np.arange(0, len(labels), step)
    turned = {"rotation": 90} if axis == "x" else {}
    size = 8 if len(shown) <= 40 else 7 if len(shown) <= 64 else 6
    set_ticks = axes.set_xticks if axis == "x" else axes.set_yticks
    set_ticks(places, shown, family=FONT, fontsize=size, parse_math=False, **turned)


def _draw(axes: Axes, weights: np.ndarray, tokens: int | None = None) -> AxesImage:
    """weights [T, S], of which those above the diagonal stay blank; each side stands for `tokens`."""
    T = len(weights)
    blank = np.ma.masked_array(weights, np.triu(np.ones((T, T), bool), 1))
    end = (tokens or T) - 0.5
    axes.set_facecolor("#f2f2f2")
    return axes.imshow(blank, COLOURS, norm=_scale(), extent=(-0.5, end, end, -0.5), interpolation="nearest")


def _scale() -> PowerNorm:
    return PowerNorm(0.5, 0, 1)


def _pooled(weights: np.ndarray) -> np.ndarray:
    """weights [T, S] -> the largest of each block, so that thin lines stay; at most 192 a side."""
    T = len(weights)
    size = -(-T // MOST_PIXELS)
    rest = -T % size
    blocks = np.pad(weights, ((0, rest), (0, rest))).reshape((T + rest) // size, size, (T + rest) // size, size)
    return blocks.max((1, 3))


def _write_numbers(axes: Axes, drawn: AxesImage, values: np.ndarray) -> None:
    largest = float(np.nanmax(values))
    for (layer, head), value in np.ndenumerate(values):
        colour = "black" if drawn.norm(value) > 0.5 else "white"
        text = f"{value:.0f}" if largest >= 100 else f"{value:.1f}" if largest >= 10 else f"{value:.2f}"
        axes.text(head, layer, text.removeprefix("0") or "0", ha="center", va="center", fontsize=7, color=colour)


def _explained(statistics: HeadStatistics) -> str:
    where = "tokens that come again" if statistics.induction_of_text else "random tokens, repeated"
    return (
        f"Means over {statistics.tokens:,} tokens.\n\n"
        f"Induction: of {where},\nattention to the tokens after their\nearlier occurrences (Olsson et al., 2022)."
    )

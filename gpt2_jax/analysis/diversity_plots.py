"""Pictures of a sweep: what each factor of a draw does to the texts, and what variety costs in quality."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from gpt2_jax.analysis.plots import COLOURS, Picture, logarithmic
from gpt2_jax.analysis.sweep import FACTORS, PLAIN, Result, Setting
from gpt2_jax.errors import InputError

# The panels of `diversity`: figures of `quality.measure` that share one, each with its name in the legend.
PANELS = {
    "perplexity per token": {"perplexity": "of the model itself", "judged_perplexity": "of the judge"},
    "distinct-n (higher: more varied)": {"distinct_1": "distinct-1", "distinct_2": "distinct-2"},
    "self-BLEU (lower: more varied)": {"self_bleu": "self-BLEU"},
    "repetition, seq-rep-4": {"repetition_4": "seq-rep-4"},
    "MAUVE (higher: as people write)": {"mauve": "MAUVE"},
}
SHORT = dict(zip(FACTORS, ("T", "k", "p", "rep", "length")))
KINDS = ["plain sampling", *(f"{SHORT[name]}: {name}" for name in PLAIN), "several factors"]
PLANES = {"self_bleu": "self-BLEU (lower: more varied)", "distinct_2": "distinct-2 (higher: more varied)"}
ALL_NAMED = 20  # points at most of which all are named
POINT = 6.0  # the width of a marker, in points of 1/72 inch
DISTANCES = (5.0, 12.0, 22.0, 36.0)  # of names from their points, as many as are tried; a line leads to the far ones


def diversity(results: Sequence[Result]) -> Picture:
    """The figures of a sweep against each factor with several values; a factor that is off is the last value.

    Thick lines are means over the combinations of the other factors, which are thin where there are several.

    Raises:
      InputError: no factor has two values.
    """
    varied = {factor: lines for factor in FACTORS if (lines := list(_lines(results, factor)))}
    if not varied:
        raise InputError("the sweep has no factor with two values to compare; give more, such as --temperature=0.7,1")
    has = lambda name: any(result.metrics.get(name) is not None for result in results)
    panels = {title: kept for title, names in PANELS.items() if (kept := {n: l for n, l in names.items() if has(n)})}
    figure = Picture(1.2 + 2.9 * len(varied), 0.6 + 2.2 * len(panels))
    grid = figure.subplots(len(panels), len(varied), squeeze=False, sharex="col", sharey="row")
    for row, (title, names) in zip(grid, panels.items()):
        for axes, (factor, lines) in zip(row, varied.items()):
            for (name, label), colour, marker in zip(names.items(), COLOURS, "os"):
                _draw_factor(axes, factor, lines, name, label, colour, marker)
            axes.grid(alpha=0.3)
        row[0].set_title(title, loc="left", fontsize=10)
        if title.startswith("perplexity"):
            logarithmic(row[0])
        else:
            row[0].set_ylim(bottom=-0.04 * row[0].get_ylim()[1])
        if len(names) > 1:
            row[0].legend(fontsize=8, frameon=False)
    for axes, factor in zip(grid[-1], varied):
        axes.set_xlabel(factor)
    if any(len(lines) > 1 for lines in varied.values()):
        figure.supxlabel("thin: a combination of the other factors; thick: the mean of those with all values", size=9)
    return figure


def quality_diversity(results: Sequence[Result]) -> Picture:
    """Perplexity, the judge's where there is one, against self-BLEU and distinct-2: a point a setting.

    The line joins the settings that no other beats in both. They are named, and so are all where they are few.

    Raises:
      InputError: no setting has these figures.
    """
    judged = any(result.metrics.get("judged_perplexity") is not None for result in results)
    quality = "judged_perplexity" if judged else "perplexity"
    of = {name: [r for r in results if None not in (r.metrics.get(name), r.metrics.get(quality))] for name in PLANES}
    planes = {name: found for name, found in of.items() if found}
    if not planes:
        raise InputError(f"the sweep has no setting with {quality} beside {' or '.join(PLANES)}; draw longer texts")
    figure = Picture(6.5 * len(planes), 5.5)
    FigureCanvasAgg(figure)
    kinds = sorted({_kind(result.setting) for found in planes.values() for result in found}, key=KINDS.index)
    styles = {kind: (COLOURS[KINDS.index(kind)], "osD^v*"[KINDS.index(kind)]) for kind in kinds}
    panels = figure.subplots(1, len(planes), squeeze=False, sharey=True)[0]
    for axes, (name, found) in zip(panels, planes.items()):
        for result in found:
            colour, marker = styles[_kind(result.setting)]
            axes.plot(result.metrics[name], result.metrics[quality], marker, color=colour, markersize=POINT, alpha=0.85)
        axes.set_xlabel(PLANES[name])
        axes.grid(alpha=0.3)
        axes.margins(0.12)
        axes.set_title(" ", fontsize=9)  # room for what `_name_points` may have to say
    logarithmic(panels[0])
    panels[0].set_ylabel(f"perplexity per token of the {'judge' if judged else 'model itself'} (lower: more probable)")
    handles = [Line2D([], [], color=c, marker=m, linestyle="", label=kind) for kind, (c, m) in styles.items()]
    handles.append(Line2D([], [], color="#999999", label="not beaten in both"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)
    figure.draw_without_rendering()  # axes have their sizes from here on
    for axes, (name, found) in zip(panels, planes.items()):
        points = [(result.metrics[name], result.metrics[quality]) for result in found]
        best = frontier(points, lower=name == "self_bleu")
        axes.plot(*zip(*(points[i] for i in best)), color="#999999", linewidth=1, zorder=0)
        named = best if len(points) > ALL_NAMED else range(len(points))
        _name_points(axes, points, {i: _short(found[i].setting, results) for i in named})
    return figure


def frontier(points: Sequence[tuple[float, float]], lower: bool) -> list[int]:
    """Which (x, y) no other one beats in both, by x; lower y is better, and lower or else higher x."""
    best, found = math.inf, []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0] if lower else -points[i][0], points[i][1])):
        if points[i][1] < best:
            best = points[i][1]
            found.append(i)
    return found


def _lines(results: Sequence[Result], factor: str) -> Iterator[list[Result]]:
    """Settings that differ in `factor` alone, in its order, as many as there are of two or more."""
    others = lambda result: [value for name, value in result.setting.items() if name != factor]
    for _, group in itertools.groupby(sorted(results, key=others), key=others):
        line = sorted(group, key=lambda result: _place(factor, result.setting[factor]))
        if len(line) > 1:
            yield line


def _place(factor: str, value: float) -> float:
    """What values are sorted by: no limit on the number of tokens is the highest."""
    return math.inf if factor == "top_k" and value == 0 else value


def _draw_factor(
    axes: Axes, factor: str, lines: Sequence[Sequence[Result]], name: str, label: str, colour: str, marker: str
) -> None:
    values = sorted({result.setting[factor] for line in lines for result in line}, key=lambda v: _place(factor, v))
    curves = [
        {values.index(r.setting[factor]): r.metrics[name] for r in line if r.metrics.get(name) is not None}
        for line in lines
    ]
    whole = [curve for curve in curves if len(curve) == len(values)]
    if len(curves) == 1:
        thick = curves[0]
    else:
        for curve in curves:
            axes.plot(list(curve), list(curve.values()), color=colour, linewidth=0.6, alpha=0.4)
        thick = {place: sum(curve[place] for curve in whole) / len(whole) for place in range(len(values)) if whole}
    style = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.8}
    axes.plot(list(thick), list(thick.values()), label=label, **style)
    off = None if factor == "temperature" else PLAIN.get(factor)  # a temperature of 1 is one like others
    axes.set_xticks(range(len(values)), ["off" if value == off else f"{value:g}" for value in values])
    axes.margins(x=0.12)


def _different(setting: Setting, results: Sequence[Result]) -> dict[str, float]:
    """What differs from plain sampling, and the length where the sweep has several."""
    lengths = {result.setting["max_new_tokens"] for result in results}
    of_plain = {name: value for name, value in setting.items() if name in PLAIN and value != PLAIN[name]}
    return of_plain | ({"max_new_tokens": setting["max_new_tokens"]} if len(lengths) > 1 else {})


def _kind(setting: Setting) -> str:
    """What a point's colour says: one of `KINDS`."""
    names = [name for name in PLAIN if setting[name] != PLAIN[name]]
    return KINDS[0] if not names else f"{SHORT[names[0]]}: {names[0]}" if len(names) == 1 else KINDS[-1]


def _short(setting: Setting, results: Sequence[Result]) -> str:
    different = _different(setting, results)
    return " ".join(f"{SHORT[name]} {value:g}" for name, value in different.items()) or "plain"


def _name_points(axes: Axes, points: Sequence[tuple[float, float]], names: Mapping[int, str]) -> None:
    """Writes the names of some points beside them, where nothing else is; says how many have no room for one."""
    renderer = axes.figure.canvas.get_renderer()
    scale = renderer.points_to_pixels(1.0)
    pixels = axes.transData.transform(points)
    taken = [Bbox.from_bounds(x, y, 0, 0).padded(POINT / 2 * scale) for x, y in pixels]
    inside, unnamed = axes.get_window_extent(renderer), 0
    for i, name in names.items():
        label = axes.annotate(
            name, points[i], xytext=(0, 0), textcoords="offset points", fontsize=8, ha="center", va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.3},
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "#555555", "shrinkA": 0, "shrinkB": POINT / 2},
        )  # fmt: skip
        box = Text.get_window_extent(label, renderer)  # without the line
        place = _room(box.width, box.height, pixels[i], scale, taken, inside)
        if place is None:
            label.remove()
            unnamed += 1
            continue
        offset, found, near = place
        label.set_position((offset[0] / scale, offset[1] / scale))
        label.arrow_patch.set_visible(not near)
        taken.append(found)
    if unnamed:
        axes.set_title(f"{unnamed} of {len(names)} points have no room for a name", loc="left", fontsize=9)


def _room(
    width: float, height: float, pixel: Sequence[float], scale: float, taken: Sequence[Bbox], inside: Bbox
) -> tuple[tuple[float, float], Bbox, bool] | None:
    """(offset of the label's middle, its box, whether it is next to its point) of the first free place."""
    for distance in DISTANCES:
        for side, up in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            x = side * (width / 2 + distance * scale)
            y = up * (height / 2 + distance * scale)
            box = Bbox.from_bounds(pixel[0] + x - width / 2, pixel[1] + y - height / 2, width, height)
            within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if within and not any(box.overlaps(other) for other in taken):
                return (x, y), box, distance == DISTANCES[0]
    return None

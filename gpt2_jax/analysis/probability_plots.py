"""Probabilities of tokens drawn: `TokenProbabilities` in, figures out."""

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.patches import Patch, Rectangle

from gpt2_jax.analysis.attention_plots import MOST_LABELS, label_tokens
from gpt2_jax.analysis.plots import COLOURS, Picture
from gpt2_jax.analysis.probabilities import RANKS, TokenProbabilities
from gpt2_jax.analysis.token_labels import FONT, TAB, drawable, spaced
from gpt2_jax.errors import check

COLUMNS, LEAST_COLUMNS, TAB_STOP = 88, 52, 4  # characters
POINTS, CHARACTER, LINE = 10, 10 * 0.602 / 72, 0.2  # the font's size; a character's width and a line's height, inches
MARGIN, HEADER = 0.2, 0.75  # inches
MOST_BITS = 16.0  # surprisal of the darkest colour
# Light enough for black letters, and darker from step to step in grey, too.
SURPRISAL_COLOURS = LinearSegmentedColormap.from_list("surprisal", ["#ffffff", "#fde3b3", "#f3b24f", "#df9128"])
RANK_COLOURS = ("#8fd3bd", "#f0e442", "#f2a176", "#d58db5")  # Okabe and Ito's, three of them lighter
BY = ("surprisal", "rank")


def text_picture(probabilities: TokenProbabilities, by: str = "surprisal") -> Picture:
    """The text, each token on a ground whose colour tells its surprisal or the class of its rank.

    Raises:
      InputError: `by` is neither.
    """
    check(by in BY, "by", by, " or ".join(BY))
    places = list(_lay_out([spaced(drawable(text)) for text in probabilities.texts]))
    lines = places[-1][1] + 1
    columns = max(LEAST_COLUMNS, *(column + _cells(text) for _, _, column, text in places))
    width, height = 2 * MARGIN + columns * CHARACTER, HEADER + MARGIN + lines * LINE
    figure = Picture(width, height)
    figure.set_layout_engine("none")  # places are in inches, so that letters fit their places
    box = (MARGIN / width, MARGIN / height, 1 - 2 * MARGIN / width, lines * LINE / height)
    axes = figure.add_axes(box, xlim=(0, columns), ylim=(lines, 0))
    axes.axis("off")
    colours = _surprisal_colours(figure, probabilities) if by == "surprisal" else _rank_colours(figure, probabilities)
    grounds = []
    for _, row, column, text in places:
        grounds.append(Rectangle((column, row + 0.04), _cells(text), 0.92))
        axes.text(column, row + 0.72, text, family=FONT, fontsize=POINTS, parse_math=False)
    shades = [colours[token] for token, *_ in places]
    axes.add_collection(PatchCollection(grounds, facecolors=shades, edgecolors="white", linewidths=1))
    return figure


def along_text(probabilities: TokenProbabilities) -> Picture:
    """Surprisal, and entropy beside it: how surprised the model was, and how surprised it expected to be."""
    T = len(probabilities.tokens)
    figure = Picture(float(np.clip(2 + 0.17 * T, 6, 13)), 4.2)
    axes, places = figure.add_subplot(), np.arange(T)
    width = min(0.8, 0.1 * T) if T <= MOST_LABELS else 1.0
    axes.bar(places, probabilities.surprisal, width, color=COLOURS[5], label="surprisal")
    marker = "o" if T <= MOST_LABELS else None
    axes.plot(places, probabilities.entropy, color=COLOURS[1], marker=marker, ms=3, lw=1.2, label="entropy (expected)")
    label_tokens(axes, probabilities.labels, "x")
    axes.set(ylabel="bits", xlim=(-0.6, T - 0.4), title=f"perplexity {probabilities.perplexity:,.1f}, tokens: {T:,}")
    _tidy(axes)
    figure.legend(frameon=False, loc="outside upper center", ncols=2)
    return figure


def rank_histogram(probabilities: TokenProbabilities) -> Picture:
    """How many of the tokens were among the 10, 100 and 1,000 that the model held for the most probable (GLTR)."""
    counts = np.bincount(probabilities.rank_class, minlength=len(RANKS))
    figure = Picture(5.5, 3.6)
    axes = figure.add_subplot()
    shares = counts / counts.sum()
    bars = axes.bar(list(RANKS), 100 * shares, color=RANK_COLOURS, edgecolor="#444444", linewidth=0.8)
    axes.bar_label(bars, [f"{share:.1%}\n{count:,}" for share, count in zip(shares, counts)], fontsize=9, padding=2)
    axes.set(xlabel="rank of the token", ylabel="share of the tokens (%)", ylim=(0, 118 * shares.max()))
    axes.set_title(f"tokens: {counts.sum():,}, median rank {np.median(probabilities.rank):,.0f}")
    _tidy(axes)
    return figure


def _surprisal_colours(figure: Picture, probabilities: TokenProbabilities) -> Sequence:
    scale = ScalarMappable(Normalize(0, MOST_BITS), SURPRISAL_COLOURS)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((MARGIN / width, 1 - 0.42 / height, 3 / width, 0.14 / height))
    figure.colorbar(scale, cax=axes, orientation="horizontal", extend="max")
    axes.set_title("surprisal (bits)", fontsize=9, loc="left", pad=3)
    axes.tick_params(labelsize=8, length=2)
    return scale.to_rgba(probabilities.surprisal)


def _rank_colours(figure: Picture, probabilities: TokenProbabilities) -> Sequence:
    width, height = figure.get_size_inches()
    patches = [Patch(facecolor=colour, label=name) for name, colour in zip(RANKS, RANK_COLOURS)]
    at = {"loc": "upper left", "bbox_to_anchor": (MARGIN / width, 1 - 0.08 / height), "borderaxespad": 0}
    title = "rank of each token in the model's expectation"
    legend = figure.legend(handles=patches, ncols=4, frameon=False, fontsize=9, title=title, title_fontsize=9, **at)
    legend.set_alignment("left")
    return [RANK_COLOURS[i] for i in probabilities.rank_class]


def _lay_out(texts: Sequence[str]) -> Iterator[tuple[int, int, int, str]]:
    """(which text, row, column, what of it is there): texts after each other; one that does not fit begins a row."""
    row = column = 0
    for i, text in enumerate(texts):
        for line, part in enumerate(text.split("\n")):
            if line:
                row, column = row + 1, 0
            part = part.replace(TAB + "\t", TAB + " " * (TAB_STOP - 1))
            if column and column + _cells(part) > COLUMNS:
                row, column = row + 1, 0
            for start in range(0, len(part), COLUMNS):
                if start:
                    row, column = row + 1, 0
                piece = part[start : start + COLUMNS]
                yield i, row, column, piece
                column += _cells(piece)


def _cells(text: str) -> int:
    """Places that a text takes; a combining mark takes none."""
    return sum(not unicodedata.combining(character) for character in text)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)

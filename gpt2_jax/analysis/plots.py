"""What all pictures share: colours, and figures that notebooks show. No pyplot: nothing is kept between pictures."""

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

# Okabe and Ito (2008): told apart by the colour-blind, and in print; their yellow is too light for lines on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
SUFFIXES = (".png", ".svg", ".pdf")
DPI = 150


class Picture(Figure):
    """A figure whose parts make room for each other, and that a notebook shows without pyplot."""

    def __init__(self, width: float, height: float):
        """Inches."""
        super().__init__(figsize=(width, height), layout="constrained")

    def _repr_png_(self) -> bytes:
        return image(self, ".png")


def image(figure: Figure, suffix: str) -> bytes:
    """A figure in one of the formats `SUFFIXES`, without the date: the same figure gives the same bytes."""
    stream = io.BytesIO()
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": None}[suffix]
    with matplotlib.rc_context({"svg.hashsalt": "gpt2_jax"}):
        figure.savefig(stream, format=suffix[1:], dpi=DPI, metadata=undated)
    return stream.getvalue()


def plain(text: str) -> str:
    """A text as matplotlib draws it unchanged: dollar signs begin no formula."""
    return text.replace("$", r"\$")


def logarithmic(axes: Axes) -> None:
    """Makes the y axis logarithmic, with numbers as people write them."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())

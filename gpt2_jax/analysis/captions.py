"""A picture of images with what a model says of them."""

import math
from collections.abc import Sequence

from gpt2_jax.analysis.plots import COLOURS, Picture, plain
from gpt2_jax.errors import InputError
from gpt2_jax.evaluation.captioning import Written

COLUMNS, MOST = 6, 60  # images in a row, and in a picture
LONGEST = 40  # characters of a line below an image
WRONG = COLOURS[1]


def captions(written: Sequence[Written]) -> Picture:
    """Images side by side; below each its name, what the model says, and where that is wrong what it should have said.

    Raises:
      InputError: there are none, or the model reads features, which are no pictures.
    """
    if not written or written[0].pixels.ndim == 1:
        what = "features, which are no pictures" if written else "none"
        raise InputError(f"the images are {what}; there is nothing to draw")
    shown = written[:MOST]
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    picture = Picture(2.1 * columns, 2.5 * rows)
    for number, one in enumerate(shown, 1):
        axes = picture.add_subplot(rows, columns, number)
        grey = one.pixels.shape[-1] == 1
        axes.imshow(one.pixels[..., 0] if grey else one.pixels, cmap="gray" if grey else None, vmin=0, vmax=255)
        axes.set_xticks([])
        axes.set_yticks([])
        lines = [one.name, one.caption] if one.right else [one.name, f"says {one.caption}", f"is {one.wanted[0]}"]
        axes.set_xlabel(plain("\n".join(map(_short, lines))), fontsize=8, color="black" if one.right else WRONG)
    return picture


def _short(line: str) -> str:
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."

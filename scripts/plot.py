"""Draws a picture of runs, models or sweeps: .png, .svg, .pdf, or .html that needs no other file.

python scripts/plot.py --picture=curves --workdir=runs/quickstart,runs/wide --output=curves.png
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from matplotlib.figure import Figure

import gpt2_jax
from gpt2_jax.analysis import pages
from gpt2_jax.analysis.curves import curves

WORKDIR = flags.DEFINE_list("workdir", None, "Of curves: folders of training runs, with commas.")


def draw_curves() -> Figure:
    return curves(given(WORKDIR))


def given(flag: flags.FlagHolder):
    """The value of an option that the picture cannot do without."""
    if not flag.value:
        raise gpt2_jax.InputError(f"there is no --{flag.name}, which --picture={PICTURE.value} needs; --help says more")
    return flag.value


# What draws each picture, and the suffixes that its file may have. A text that is drawn is the file, as it is.
PICTURES = {
    "curves": (draw_curves, pages.PICTURES),
}
PICTURE = flags.DEFINE_enum("picture", None, list(PICTURES), "What to draw.")
OUTPUT = flags.DEFINE_string("output", None, "File to write; its suffix decides the format.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; a text with spaces needs quotes")
    logging.set_verbosity(logging.ERROR)
    draw, suffixes = PICTURES[PICTURE.value]
    file = Path(OUTPUT.value).expanduser()
    try:
        pages.check_suffix(file, suffixes)  # before the work
        pages.write(file, draw(), title=PICTURE.value)
        print(file)
    except gpt2_jax.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["picture", "output"])
    app.run(main)

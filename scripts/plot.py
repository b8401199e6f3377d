"""Draws a picture of runs, models or sweeps: .png, .svg, .pdf, or .html that needs no other file.

python scripts/plot.py --picture=curves --workdir=runs/quickstart,runs/wide --output=curves.png
"""

import sys
from pathlib import Path

from absl import app, flags, logging
from matplotlib.figure import Figure

import gpt2_jax
from gpt2_jax.analysis import attention_plots, coloured_text, diversity_plots, pages, probability_plots, sweep
from gpt2_jax.analysis.attention_maps import attention_of, head_statistics
from gpt2_jax.analysis.curves import curves
from gpt2_jax.analysis.probabilities import TokenProbabilities, token_probabilities
from gpt2_jax.analysis.side_by_side import read_settings, side_by_side
from gpt2_jax.errors import one_line

WORKDIR = flags.DEFINE_list("workdir", None, "Of curves: folders of training runs, with commas.")
SWEEP = flags.DEFINE_string("sweep", None, "Of diversity and quality: the folder that scripts/sweep.py wrote.")
MODEL = flags.DEFINE_string("model", None, "Training run, folder or file of GPT-2 weights, or hub id.")
STEP = flags.DEFINE_string("step", None, "Checkpoint of a run: a step, or 'best'; the latest by default.")
PROMPT = flags.DEFINE_multi_string("prompt", [""], "Of completions: a text to continue; several times for several.")
SETTINGS = "options of generation, temperature=0.5,1;top_p=0.9 for all combinations, or a JSON list of objects."
ROWS = flags.DEFINE_string("rows", None, f"Of completions: {SETTINGS}")
COLUMNS = flags.DEFINE_string("columns", "[{}]", f"Of completions: {SETTINGS}")
OPTIONS = flags.DEFINE_string("options", "[{}]", "Of completions: what all share, such as max_new_tokens=40.")
TEXT = flags.DEFINE_string("text", None, "Of attention and probabilities: the text that the model reads.")
FILE = flags.DEFINE_string("file", None, "Instead of --text: a file with it.")
LAYER = flags.DEFINE_integer("layer", 0, "Of attention and heads: from 0; -1 is the last.")
HEAD = flags.DEFINE_integer("head", 0, "Of attention: from 0.")
TOP_K = flags.DEFINE_integer("top_k", 10, "Of probabilities as .html: alternatives of each token.")
SEEDS = flags.DEFINE_list("seeds", ["0"], "Of completions: a text of each setting for each of them, with commas.")


def draw_curves() -> Figure:
    return curves(given(WORKDIR))


def draw_diversity() -> Figure:
    return diversity_plots.diversity(sweep.read(Path(given(SWEEP))))


def draw_quality() -> Figure:
    return diversity_plots.quality_diversity(sweep.read(Path(given(SWEEP))))


def draw_completions() -> str:
    rows, columns, shared = (read_settings(text) for text in (given(ROWS), COLUMNS.value, OPTIONS.value))
    if len(shared) != 1:
        raise gpt2_jax.InputError(
            f"options is {OPTIONS.value!r}; it must be one setting: rows and columns have several"
        )
    if not all(seed.isdecimal() for seed in SEEDS.value):
        raise gpt2_jax.InputError(f"seeds is {','.join(SEEDS.value)}; it must be whole numbers with commas")
    seeds = [int(seed) for seed in SEEDS.value]
    found = side_by_side(load(), PROMPT.value, rows, columns, seeds=seeds, **shared[0])
    return found.markdown() if OUTPUT.value.endswith(".md") else found.page()


def draw_attention() -> Figure:
    return attention_plots.head_map(attention_of(*reading(), LAYER.value), HEAD.value)


def draw_heads() -> Figure:
    return attention_plots.layer_grid(attention_of(*reading(), LAYER.value))


def draw_statistics() -> Figure:
    return attention_plots.statistics_grid(head_statistics(*reading()))


def draw_probabilities() -> Figure | str:
    if OUTPUT.value.endswith(".html"):
        return coloured_text.page(probabilities(), f"What {MODEL.value} expected")
    return probability_plots.text_picture(probabilities())


def draw_ranks() -> Figure:
    return probability_plots.text_picture(probabilities(), "rank")


def draw_surprisal() -> Figure:
    return probability_plots.along_text(probabilities())


def draw_histogram() -> Figure:
    return probability_plots.rank_histogram(probabilities())


def probabilities() -> TokenProbabilities:
    return token_probabilities(*reading(), TOP_K.value)


def reading() -> tuple[gpt2_jax.LanguageModel, str]:
    """The model and what it reads."""
    text = read_text()  # before the model, which takes longer
    return load(), text


def read_text() -> str:
    """The text of --text or of --file."""
    if FILE.value is None:
        return given(TEXT)
    if TEXT.value is not None:
        raise gpt2_jax.InputError("there is --text, and --file besides; give one of them")
    try:
        return Path(FILE.value).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise gpt2_jax.InputError(f"{FILE.value} cannot be read ({one_line(error)}); give a text in UTF-8") from None


def load() -> gpt2_jax.LanguageModel:
    return gpt2_jax.load(given(MODEL), step=STEP.value)


def given(flag: flags.FlagHolder):
    """The value of an option that the picture cannot do without."""
    if not flag.value:
        raise gpt2_jax.InputError(f"there is no --{flag.name}, which --picture={PICTURE.value} needs; --help says more")
    return flag.value


# What draws each picture, and the suffixes that its file may have. A text that is drawn is the file, as it is.
PICTURES = {
    "curves": (draw_curves, pages.PICTURES),
    "diversity": (draw_diversity, pages.PICTURES),
    "quality": (draw_quality, pages.PICTURES),
    "completions": (draw_completions, (".md", ".html")),
    "attention": (draw_attention, pages.PICTURES),
    "heads": (draw_heads, pages.PICTURES),
    "statistics": (draw_statistics, pages.PICTURES),
    "probabilities": (draw_probabilities, pages.PICTURES),
    "ranks": (draw_ranks, pages.PICTURES),
    "surprisal": (draw_surprisal, pages.PICTURES),
    "histogram": (draw_histogram, pages.PICTURES),
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

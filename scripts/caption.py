"""Says what a model sees: captions of images, or all that were held out when it was trained.

python scripts/caption.py --model=runs/digits --image=digit.png --image=another.png
python scripts/caption.py --model=runs/digits --held_out --wrong=wrong.png
python scripts/caption.py --model=runs/digits --data=images/ --limit=20 --picture=captions.png
"""

import sys
from pathlib import Path

from absl import app, flags, logging

import gpt2_jax
from gpt2_jax.evaluation import captioning
from gpt2_jax.generation.command_line import define_options, given_options
from gpt2_jax.image_language_model import ImageLanguageModel

MODEL = flags.DEFINE_string("model", None, "Training run with images.")
STEP = flags.DEFINE_string("step", None, "Checkpoint of a run: a step, or 'best'; the latest by default.")
IMAGE = flags.DEFINE_multi_string("image", [], "File of an image; several may be given.")
PROMPT = flags.DEFINE_string("prompt", "", "What each caption begins with.")
HELD_OUT = flags.DEFINE_boolean("held_out", False, "All images that the run held out, in place of --image.")
DATA = flags.DEFINE_string("data", None, "Folder of images with captions, in place of --image.")
LIMIT = flags.DEFINE_integer("limit", None, "Images at most, of --held_out and --data.", lower_bound=1)
PICTURE = flags.DEFINE_string("picture", None, "File (.png, .svg, .pdf, .html) to draw images with captions in.")
WRONG = flags.DEFINE_string("wrong", None, "The same of those whose captions are wrong.")
define_options()


def caption_files(lm: ImageLanguageModel, options: dict) -> None:
    for name in ("picture", "wrong", "limit"):
        if flags.FLAGS[name].value is not None:
            raise gpt2_jax.InputError(f"--{name} is of images with captions; give --held_out or --data, too")
    several = options.get("num_return_sequences", 1)
    found = lm.caption(IMAGE.value, PROMPT.value, **options)
    for name, caption in zip((name for name in IMAGE.value for _ in range(several)), found):
        print(f"{name}: {caption}" if len(IMAGE.value) > 1 else caption)


def caption_known(lm: ImageLanguageModel, options: dict) -> None:
    if options or PROMPT.value or IMAGE.value:
        raise gpt2_jax.InputError("images with captions are compared greedily; leave out --image and all other options")
    written = list(captioning.write(lm, captioning.Chosen(DATA.value, LIMIT.value)))
    wrong = [one for one in written if not one.right]
    for one in wrong:
        print(f"{one.name}: {one.caption} (is {' / '.join(one.wanted)})")
    right = len(written) - len(wrong)
    print(f"{right} of {len(written)} captions are right, {100 * right / len(written):.2f} %")
    for file, chosen in ((PICTURE.value, written), (WRONG.value, wrong)):
        if file is not None and chosen:
            from gpt2_jax.analysis import pages
            from gpt2_jax.analysis.captions import captions

            pages.write(Path(file), captions(chosen), f"Captions of {MODEL.value}")
            print(f"wrote {file}")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --image=a.png")
    logging.set_verbosity(logging.ERROR)
    try:
        known = HELD_OUT.value or DATA.value is not None
        if not known and not IMAGE.value:
            raise gpt2_jax.InputError("there is no --image; give one or more, or --held_out, or --data")
        options = given_options() if known else given_options(temperature=0.0)
        lm = gpt2_jax.load(MODEL.value, step=STEP.value)
        if not isinstance(lm, ImageLanguageModel):
            raise gpt2_jax.InputError(f"{MODEL.value} reads no images; give a run that was trained with image.source")
        (caption_known if known else caption_files)(lm, options)
    except gpt2_jax.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["model"])
    app.run(main)

"""Rewrites a model as the files of another format.

python scripts/convert.py --input=runs/quickstart --output=exported --format=safetensors
python scripts/convert.py --input=flax_folder --output=safe_folder
"""

import sys

from absl import app, flags, logging

import gpt2_jax
from gpt2_jax.weights import FILES

INPUT = flags.DEFINE_string("input", None, "Training run, folder or file of GPT-2 weights, or hub id.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
FORMAT = flags.DEFINE_enum(
    "format", "safetensors", list(FILES), "safetensors is what transformers opens, flax what FlaxGPT2 does."
)
STEP = flags.DEFINE_string("step", None, "Checkpoint of a run: a step, or 'best'; the latest by default.")
REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit of a hub id.")
TOKENIZER = flags.DEFINE_string("tokenizer", None, "Tokenizer file, folder or hub id, in place of the model's own.")
N_POSITIONS = flags.DEFINE_integer("n_positions", None, "Crop the context to so many positions.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.ERROR)
    step = int(STEP.value) if (STEP.value or "").isdecimal() else STEP.value
    try:
        lm = gpt2_jax.load(
            INPUT.value, step=step, revision=REVISION.value, tokenizer=TOKENIZER.value, n_positions=N_POSITIONS.value
        )
        folder = gpt2_jax.save(lm, OUTPUT.value, FORMAT.value)
    except gpt2_jax.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for file in sorted(folder.iterdir()):
        print(f"{file}  {file.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["input", "output"])
    app.run(main)

"""Writes text with a trained model, token by token as it comes.

python scripts/generate.py --workdir=runs/quickstart --prompt="def " --max_new_tokens=100 --top_p=0.95
"""

import sys

from absl import app, flags, logging

import gpt2_jax
from gpt2_jax.generation.command_line import define_options, given_options

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run, folder or file of GPT-2 weights, or hub id.")
STEP = flags.DEFINE_string("step", None, "Checkpoint of a run: a step, or 'best'; the latest by default.")
PROMPT = flags.DEFINE_string("prompt", "", "Text to continue; empty starts a new one.")

define_options()


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; a prompt with spaces needs quotes")
    logging.set_verbosity(logging.ERROR)  # the terminal is for the text
    try:
        options = given_options(temperature=0.8, top_p=0.95)
        lm = gpt2_jax.load(WORKDIR.value, step=STEP.value)
        if options.keys() & {"num_return_sequences", "best_of", "num_beams", "penalty_alpha"}:
            results = lm.generate([PROMPT.value], **options)
            print(*results, sep="\n---\n")
        else:
            pieces = lm.stream(PROMPT.value, **options)
            print(PROMPT.value, end="", flush=True)
            for piece in pieces:
                print(piece, end="", flush=True)
            print()
    except gpt2_jax.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()
        return 130
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    app.run(main)

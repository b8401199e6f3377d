"""Writes text with a trained model, token by token as it comes.

python scripts/generate.py --workdir=runs/quickstart --prompt="def " --max_new_tokens=100 --top_p=0.95
"""

import sys

from absl import app, flags, logging

import gpt2_jax

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.")
STEP = flags.DEFINE_string("step", None, "Checkpoint: a step, or 'best'; the latest by default.")
PROMPT = flags.DEFINE_string("prompt", "", "Text to continue; empty starts a new one.")
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", None, "Tokens to add; by default 128, or what the context leaves."
)
TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "0 takes the most probable token each time.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draw among the k most probable tokens; 0 is off.")
TOP_P = flags.DEFINE_float("top_p", 0.95, "Draw among the most probable tokens of this total probability; 1 is off.")
SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same text.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; a prompt with spaces needs quotes")
    logging.set_verbosity(logging.ERROR)  # the terminal is for the text
    step = int(STEP.value) if (STEP.value or "").isdigit() else STEP.value
    try:
        lm = gpt2_jax.load(WORKDIR.value, step=step)
        pieces = lm.stream(
            PROMPT.value,
            max_new_tokens=MAX_NEW_TOKENS.value,
            temperature=TEMPERATURE.value,
            top_k=TOP_K.value,
            top_p=TOP_P.value,
            seed=SEED.value,
        )
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

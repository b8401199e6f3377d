"""Writes text with a trained model, token by token as it comes.

python scripts/generate.py --workdir=runs/quickstart --prompt="def " --max_new_tokens=100 --top_p=0.95
"""

import json
import sys

from absl import app, flags, logging

import gpt2_jax
from gpt2_jax.generation.options import Options

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run, folder or file of GPT-2 weights, or hub id.")
STEP = flags.DEFINE_string("step", None, "Checkpoint of a run: a step, or 'best'; the latest by default.")
PROMPT = flags.DEFINE_string("prompt", "", "Text to continue; empty starts a new one.")

JSON = ("sequence_bias", "early_stopping", "exponential_decay_length_penalty", "line_length")
# How an option is read from the command line; the others are numbers like their defaults.
READ = {
    **dict.fromkeys(("bad_words_ids", "stop_strings"), flags.DEFINE_multi_string),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "eos_token_id"), flags.DEFINE_multi_integer),
    **dict.fromkeys(JSON, flags.DEFINE_string),
    **dict.fromkeys(("beyond_context", "negative_prompt", "control", "negative_control"), flags.DEFINE_string),
    **dict.fromkeys(("temperature", "max_time"), flags.DEFINE_float),
}
for field in Options.fields():
    if field.name != "logprobs":  # which are not text
        of_number = flags.DEFINE_float if isinstance(field.default, float) else flags.DEFINE_integer
        READ.get(field.name, of_number)(field.name, None, field.metadata["help"])


def given_options() -> dict:
    """The options on the command line; without any about the draw, temperature 0.8 and top_p 0.95."""
    values = {field.name: flags.FLAGS[field.name].value for field in Options.fields() if field.name in flags.FLAGS}
    options = {name: value for name, value in values.items() if value is not None}
    for name in JSON:
        if name in options:
            try:
                options[name] = json.loads(options[name])
            except json.JSONDecodeError:
                raise gpt2_jax.InputError(
                    f'{name} is {options[name]!r}; it must be JSON: true, "never", [40, 0.3] or {{" text": 1.5}}'
                ) from None
    undirected = {"temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "num_beams"}
    if not (undirected | {"penalty_alpha"}) & options.keys():
        options |= {"temperature": 0.8, "top_p": 0.95}
    return options


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; a prompt with spaces needs quotes")
    logging.set_verbosity(logging.ERROR)  # the terminal is for the text
    try:
        options = given_options()
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

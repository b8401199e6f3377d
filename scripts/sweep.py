"""Draws texts under many settings, the same prompts and seeds under each, and tells how they differ.

    python scripts/sweep.py --model=runs/quickstart --prompts=prompts.txt --output=sweeps/quickstart
    python scripts/sweep.py --model=runs/quickstart --prompts=prompts.txt --output=sweeps/grid --grid \
        --temperature=0.7,1 --top_p=0.9,1 --top_k=0 --repetition_penalty=1 --max_new_tokens=50

One factor at a time, the others off, or all combinations with --grid. Stopped, the same command goes on; more values
of a factor join those that are done. The output has table.md, table.csv, results.json with every text, and a file for
each setting.
"""

import dataclasses
import sys
from pathlib import Path

from absl import app, flags, logging

import gpt2_jax
from gpt2_jax import json_lines
from gpt2_jax.analysis.sweep import Sweep, run

MODEL = flags.DEFINE_string("model", None, "Training run, folder or file of GPT-2 weights, or hub id.")
STEP = flags.DEFINE_string("step", None, "Checkpoint of a run: a step, or 'best'; the latest by default.")
PROMPTS = flags.DEFINE_string("prompts", None, "A prompt a line, or .jsonl lines with a 'prompt'.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
JUDGE = flags.DEFINE_string("judge", None, "Another model, whose perplexity of the texts is told, too.")
REFERENCES = flags.DEFINE_string(
    "references", None, "Texts of people, .jsonl lines with a 'text', or one a line: MAUVE."
)

DEFINE = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, str: flags.DEFINE_string, tuple: flags.DEFINE_list}
for field in dataclasses.fields(Sweep):
    default = list(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    DEFINE[type(field.default)](field.name, default, field.metadata["help"])


def given() -> Sweep:
    """The options on the command line; lists come as text."""
    values = {}
    for field in dataclasses.fields(Sweep):
        value = flags.FLAGS[field.name].value
        if isinstance(field.default, tuple):
            kind = type(field.default[0])
            try:
                value = tuple(map(kind, value))
            except ValueError:
                what = "whole numbers" if kind is int else "numbers"
                raise gpt2_jax.InputError(f"{field.name} is {','.join(value)}; it must be {what} with commas") from None
        values[field.name] = value
    return Sweep(**values)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; a list has commas and no spaces: --top_k=10,40")
    logging.set_verbosity(logging.ERROR)
    try:
        sweep = given()
        prompts = json_lines.texts(Path(PROMPTS.value), "prompt")
        references = json_lines.texts(Path(REFERENCES.value), "text") if REFERENCES.value else ()
        lm = gpt2_jax.load(MODEL.value, step=STEP.value)
        judge = gpt2_jax.load(JUDGE.value) if JUDGE.value else None
        run(lm, prompts, sweep, Path(OUTPUT.value), judge=judge, references=references)
        print((Path(OUTPUT.value) / "table.md").read_text(encoding="utf-8"))
    except gpt2_jax.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on after the settings that are done", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["model", "prompts", "output"])
    app.run(main)

"""Sentences of your texts by their sentiment: positive.jsonl and negative.jsonl, for experts or control codes to learn.

    python scripts/label_sentiment.py --paths=stories/ --out=labelled
    python scripts/train.py --config=configs/quickstart.py --workdir=runs/positive --config.data.source=files \\
        --config.data.paths=labelled/positive.jsonl --config.data.tokenizer=runs/base/data/tokenizer.json

VADER judges (pip install 'gpt2_jax[sentiment]'). Each line has the text, its label, and its score from -1 to 1.
"""

import sys
from pathlib import Path

from absl import app, flags

from gpt2_jax import InputError
from gpt2_jax.evaluation.sentiment import label

PATHS = flags.DEFINE_string("paths", None, "Files, folders or globs of text, separated by commas.")
OUT = flags.DEFINE_string("out", None, "Folder to write.")
LEAST = flags.DEFINE_float("least", 0.5, "How far from 0 a score must be, in (0, 1].")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; paths with spaces need quotes")
    try:
        for file, count in label(PATHS.value, Path(OUT.value).expanduser(), LEAST.value).items():
            print(f"{file}: {count:,} sentences")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["paths", "out"])
    app.run(main)

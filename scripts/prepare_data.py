"""Turns documents into token shards, in parallel; killed, the same command goes on.

    python scripts/prepare_data.py --source=openwebtext --tokenizer=openai-community/gpt2 --encoder=tiktoken --out=owt
    python scripts/prepare_data.py --paths=poems/,songs.jsonl --out=mine
    python scripts/prepare_data.py --source=openwebtext --tokenizer=openai-community/gpt2 --out=gs://bucket/owt \
        --beam="--runner=DataflowRunner --project=mine --region=us-central1 --temp_location=gs://bucket/tmp"
    python scripts/train.py --config=CONFIG --workdir=runs/mine --config.data.prepared=mine (and the same options)

The flags are the options of `DataConfig` (gpt2_jax/config.py); training finds the tokens when its own are the same.
"""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import get_args, get_type_hints

from absl import app, flags, logging

from gpt2_jax import InputError
from gpt2_jax.config import meanings
from gpt2_jax.data.options import DataConfig

OUT = flags.DEFINE_string("out", None, "Folder for the tokens; made if absent.")
BEAM = flags.DEFINE_string(
    "beam",
    None,
    "Prepare by an Apache Beam pipeline with these options, not by processes here; needs the extra beam.",
)
ELSEWHERE = {
    *("prepared", "road", "readers", "shuffle_windows", "fill_prepared", "accept_changes"),
    *("mask_documents", "restart_positions"),
}
DEFINE = {bool: flags.DEFINE_boolean, int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string}
OPTIONS = {}
for field in dataclasses.fields(DataConfig):
    if field.name in ELSEWHERE:  # of training
        continue
    kind, meaning = get_type_hints(DataConfig)[field.name], meanings(DataConfig)[field.name]
    if choices := get_args(kind):
        OPTIONS[field.name] = flags.DEFINE_enum(field.name, field.default, list(choices), meaning)
    else:
        OPTIONS[field.name] = DEFINE[kind](field.name, field.default, meaning)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --min_characters=100")
    logging.set_verbosity(logging.ERROR)
    from gpt2_jax.data.prepare import prepare

    options = {name: flag.value for name, flag in OPTIONS.items()}
    if options["paths"] and not OPTIONS["source"].present:
        options["source"] = "files"
    try:
        config = DataConfig(**options)
        if BEAM.value is None:
            prepare(config, Path(OUT.value).expanduser(), progress=print)
        else:
            from gpt2_jax.data import beam

            beam.prepare(config, OUT.value, options=shlex.split(BEAM.value), progress=print)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the finished parts stay, and the same command goes on after them", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("out")
    app.run(main)

"""Rewrites a model as the files of another format.

python scripts/convert.py --input=runs/quickstart --output=exported --format=safetensors
python scripts/convert.py --input=flax_folder --output=safe_folder
python scripts/convert.py --input=runs/lora --output=my_adapter --format=peft   # the adapters of a run with lora.rank
python scripts/convert.py --input=openai-community/gpt2 --adapter=my_adapter --output=merged
"""

import sys
from pathlib import Path

from absl import app, flags, logging

import gpt2_jax
from gpt2_jax.exporting import save_adapter
from gpt2_jax.weights import FILES

INPUT = flags.DEFINE_string("input", None, "Training run, folder or file of GPT-2 weights, or hub id.")
OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
FORMAT = flags.DEFINE_enum(
    "format", "safetensors", [*FILES, "peft"],
    "safetensors is what transformers opens, flax what FlaxGPT2 does, peft the adapters of a run alone.",
)  # fmt: skip
STEP = flags.DEFINE_string("step", None, "Checkpoint of a run: a step, or 'best'; the latest by default.")
REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit of a hub id.")
TOKENIZER = flags.DEFINE_string("tokenizer", None, "Tokenizer file, folder or hub id, in place of the model's own.")
ADAPTER = flags.DEFINE_string("adapter", None, "Folder or hub id of PEFT's LoRA adapter, to be merged into the model.")
N_POSITIONS = flags.DEFINE_integer("n_positions", None, "Crop the context to so many positions.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.ERROR)
    try:
        if FORMAT.value == "peft":
            return write_adapter()
        lm = gpt2_jax.load(
            INPUT.value,
            step=STEP.value,
            revision=REVISION.value,
            tokenizer=TOKENIZER.value,
            n_positions=N_POSITIONS.value,
            adapter=ADAPTER.value,
        )
        folder = gpt2_jax.save(lm, OUTPUT.value, FORMAT.value)
    except gpt2_jax.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return show(folder)


def write_adapter() -> int:
    for flag in (REVISION, TOKENIZER, ADAPTER, N_POSITIONS):
        if flag.value is not None:
            raise gpt2_jax.InputError(
                f"--{flag.name} is {flag.value!r}; --format=peft writes a run's adapters as they are"
            )
    return show(save_adapter(INPUT.value, OUTPUT.value, step=STEP.value))


def show(folder: Path) -> int:
    for file in sorted(folder.iterdir()):
        print(f"{file}  {file.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["input", "output"])
    app.run(main)

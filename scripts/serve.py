"""Serves models to clients of OpenAI's API for completions.

python scripts/serve.py --model=runs/quickstart
python scripts/serve.py --model=runs/quickstart --model=big=openai-community/gpt2 --port=8001

It is for this machine alone, unless --host says otherwise; then set GPT2_JAX_API_KEY in the environment, which clients
must send. SIGINT (Ctrl-C) and SIGTERM end it.
"""

import os
import sys

from absl import app, flags, logging

import gpt2_jax
from gpt2_jax.serving.server import serve

MODEL = flags.DEFINE_multi_string(
    "model", None, "Training run, folder or file of GPT-2 weights, or hub id, or NAME=PATH; once for each."
)
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 is for everyone who can reach it.")
PORT = flags.DEFINE_integer("port", 8000, "Port to listen at; 0 is any that is free.", lower_bound=0, upper_bound=65535)
ROWS = flags.DEFINE_integer("rows", 16, "Texts that are written at a time, a power of two.")
WAITING = flags.DEFINE_integer("waiting", 64, "Texts that may wait; others are told to try again.")
WARM = flags.DEFINE_bool("warm", True, "Compile everything first, so that no request waits for it.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; each model needs its own --model")
    logging.set_verbosity(logging.ERROR)
    try:
        serve(
            MODEL.value, host=HOST.value, port=PORT.value, api_key=os.environ.get("GPT2_JAX_API_KEY"),
            warm=WARM.value, rows=ROWS.value, waiting=WAITING.value,
        )  # fmt: skip
    except gpt2_jax.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while models are loaded
        return 130
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["model"])
    app.run(main)

"""Opens a page on which to play with models: write, compare, look at probabilities and attention.

    python scripts/app.py --model=runs/quickstart
    python scripts/app.py --model=runs/quickstart --model=big=openai-community/gpt2 --port=7861 --api

The first --model is shown first. The page is for this machine alone, unless --host says otherwise; then think of a
--password. Without it, GPT2_JAX_PASSWORD is read from the environment: a command line can be seen by others. With --api
GPT2_JAX_API_KEY is what programs must send; without it the password's secret is. SIGINT (Ctrl-C) and SIGTERM end it.
"""

import os
import sys

from absl import app, flags, logging

import gpt2_jax
from gpt2_jax.app import serve

MODEL = flags.DEFINE_multi_string(
    "model", None, "Training run, folder or file of GPT-2 weights, or hub id, or NAME=PATH; once for each."
)
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 is for everyone who can reach it.")
PORT = flags.DEFINE_integer("port", 7860, "Port to listen at; 0 is any that is free.", lower_bound=0, upper_bound=65535)
PASSWORD = flags.DEFINE_string("password", os.environ.get("GPT2_JAX_PASSWORD"), "NAME:SECRET that the page asks for.")
API = flags.DEFINE_bool("api", False, "Serve the OpenAI-compatible endpoint at /v1, too.")

ROWS = flags.DEFINE_integer("rows", 16, "Texts that are written at a time, a power of two.")
WAITING = flags.DEFINE_integer("waiting", 64, "Texts that may wait; others are told to try again.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; each model needs its own --model")
    logging.set_verbosity(logging.ERROR)
    try:
        serve(
            MODEL.value, host=HOST.value, port=PORT.value, password=PASSWORD.value, api=API.value,
            api_key=os.environ.get("GPT2_JAX_API_KEY"), rows=ROWS.value, waiting=WAITING.value,
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

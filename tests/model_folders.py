"""Models as folders: of GPT-2's files, and of a run; what compares them, and Python as most users start it."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import optax

from gpt2_jax import Config, LanguageModel
from gpt2_jax.config import CheckpointConfig
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_characters
from gpt2_jax.training.checkpoint_writer import CheckpointWriter
from gpt2_jax.training.step import init_state

TEXT = "the quick brown fox jumps over the lazy dog\n"
EXTRA = 7  # entries of the model's vocabulary that the tokenizer has not


def make_lm(tokenizer, **changes):
    fields = {"vocab_size": len(tokenizer) + EXTRA, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**fields | {"initializer_range": 0.3} | changes)
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)


def copy(original, folder):
    """A saved model to damage."""
    folder.mkdir()
    for file in original.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def make_run(folder):
    """A run with two checkpoints of different parameters; the first has the better validation loss."""
    tokenizer = train_characters([TEXT])
    model = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, dtype="bfloat16")
    config = Config.from_dict({"model": dataclasses.asdict(model)})
    init = jax.jit(lambda seed: init_state(config.model, optax.identity(), seed), static_argnums=0)
    with CheckpointWriter(folder, CheckpointConfig(keep=2)) as checkpoints:
        for step, loss in ((10, 1.0), (20, 2.0)):
            state = init(step)._replace(step=np.int32(step))
            checkpoints.save(state, config.to_dict(), tokenizer.to_json(), loss)
        checkpoints.wait()
    return folder


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_same_parameters(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(a.model), jax.tree.leaves(b.model))


def python(*arguments, input=None, **environment):
    # One device, as most users of a CPU have.
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"} | environment
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, input=input, capture_output=True, text=True, env=environment)

"""What the fuzzers share: how many examples, and files to begin with.

`GPT2_JAX_FUZZ=100 pytest tests/fuzz` tries a hundred times as many, other ones each time.
"""

import dataclasses
import os

import jax
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, settings

import gpt2_jax
from gpt2_jax import LanguageModel
from gpt2_jax.config import CheckpointConfig, Config
from gpt2_jax.data.options import DataConfig
from gpt2_jax.data.prepare import prepare
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_bpe
from gpt2_jax.training.checkpoint_writer import CheckpointWriter
from gpt2_jax.training.step import init_state

TIMES = int(os.environ.get("GPT2_JAX_FUZZ", "1"))
settings.register_profile(
    "fuzz",
    derandomize=TIMES == 1,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="session")
def tokenizer():
    return train_bpe(["the quick brown fox jumps over the lazy dog\n"], 262)


@pytest.fixture(scope="session")
def small(tokenizer):
    return GPT2Config(vocab_size=len(tokenizer), n_positions=8, n_embd=4, n_layer=1, n_head=2)


@pytest.fixture(scope="session")
def saved(small, tokenizer, tmp_path_factory):
    """{format: folder} of a model."""
    lm = LanguageModel(jax.jit(GPT2, static_argnums=0)(small, jax.random.key(0)), tokenizer)
    return {format: gpt2_jax.save(lm, tmp_path_factory.mktemp(format), format) for format in ("safetensors", "flax")}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """The options and the folder of prepared tokens."""
    folder = tmp_path_factory.mktemp("prepared")
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"the quick brown fox number {i}\n")
    config = DataConfig(
        source="files", paths=str(folder), tokenizer="characters", validation_fraction=0.2, tokens_per_shard=200
    )
    prepare(config, folder / "tokens")
    return config, folder / "tokens"


@pytest.fixture(scope="session")
def workdir(small, tokenizer, tmp_path_factory):
    """A run with the checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("run")
    config = Config.from_dict({"model": dataclasses.asdict(small)})
    state = jax.jit(lambda: init_state(small, optax.identity(), 0))()
    stream = {"position": [[[0] * 6]] * 2, "fingerprints": {"a": "b"}}
    with CheckpointWriter(folder, CheckpointConfig()) as checkpoints:
        for step in (1, 2):
            at = state._replace(step=np.int32(step))
            checkpoints.save(at, config.to_dict(), tokenizer.to_json(), 2.0 - step / 2, stream)
        checkpoints.wait()
    return folder

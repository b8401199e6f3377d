"""A GPT-2 that writes Python within minutes on a laptop: the standard library's own source, nothing to download.

    python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart

TODO arithmetic
"""

from ml_collections import ConfigDict

from gpt2_jax import default_config


def get_config() -> ConfigDict:
    config = default_config()

    config.model.n_layer = 4
    config.model.n_head = 4
    config.model.n_embd = 128
    config.model.n_positions = 256
    config.model.resid_pdrop = config.model.embd_pdrop = config.model.attn_pdrop = 0.0
    config.model.scan_unroll = 4

    config.data.source = "stdlib"
    config.data.vocab_size = 4096
    config.data.validation_fraction = 0.02

    config.optimizer.learning_rate = 3e-3
    config.optimizer.final_learning_rate = 3e-4
    config.optimizer.warmup_steps = 50
    config.optimizer.beta2 = 0.99

    config.training.steps = 600
    config.training.batch_size = 8
    config.training.sample_prompt = "def "

    config.evaluation.every = 100
    config.evaluation.windows = 64
    config.checkpoint.every = 200
    return config

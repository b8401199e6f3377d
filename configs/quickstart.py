"""A GPT-2 that writes Python after minutes on a laptop: the standard library's own source, nothing to download.

    python scripts/train.py --config=configs/quickstart.py --workdir=runs/quickstart

4 sequences x 128 tokens = 512 tokens a step; 3,000 steps = 1.5 M tokens of 3.4 characters, half of the corpus.
0.94 M parameters, 0.54 M of them embeddings. About three minutes on 2 cores, to a validation perplexity of about 70 a
token (1.8 bits a byte). At this length of run, many small batches learn more than a few large ones.
"""

from ml_collections import ConfigDict

from gpt2_jax import default_config


def get_config() -> ConfigDict:
    config = default_config()

    config.model.n_layer = 2
    config.model.n_head = 4
    config.model.n_embd = 128
    config.model.n_positions = 128
    config.model.initializer_range = 0.05
    config.model.resid_pdrop = config.model.embd_pdrop = config.model.attn_pdrop = 0.0
    config.model.scan_unroll = 2

    config.data.source = "stdlib"
    config.data.tokenizer = "bpe"
    config.data.vocab_size = 4096
    config.data.validation_fraction = 0.02

    config.optimizer.learning_rate = 2e-3
    config.optimizer.final_learning_rate = 2e-4
    config.optimizer.warmup_steps = 50
    config.optimizer.beta2 = 0.99

    config.training.steps = 3000
    config.training.batch_size = 4
    config.training.log_every = 20
    config.training.sample_prompt = "    def __init__(self"
    config.training.sample_tokens = 120

    config.evaluation.every = 250
    config.evaluation.windows = 128
    config.evaluation.batch_size = 32
    config.checkpoint.every = 500
    return config

"""nanoGPT's CPU setting: a character-level GPT-2 on any text file, 4 layers of 128 with a context of 64.

    python scripts/train.py --config=configs/shakespeare_char.py --workdir=runs/shakespeare_char \
        --config.data.paths=tinyshakespeare.txt

12 sequences x 64 characters = 768 tokens a step; 2,000 steps = 1.5 M tokens, 1.5 times through a million characters.
On tinyshakespeare (1,115,394 characters, 65 different ones): 0.80 M parameters, a validation loss of about 1.77
nats a character in about two minutes on 2 cores.
"""

from ml_collections import ConfigDict

from gpt2_jax import default_config


def get_config() -> ConfigDict:
    config = default_config()

    config.model.n_layer = 4
    config.model.n_head = 4
    config.model.n_embd = 128
    config.model.n_positions = 64
    config.model.resid_pdrop = config.model.embd_pdrop = config.model.attn_pdrop = 0.0
    config.model.scan_unroll = 4
    config.model.initializer_range = 0.05  # GPT-2's 0.02 suits a width of 768; at 128 it ends at 1.89 instead of 1.77

    config.data.source = "files"
    config.data.paths = "tinyshakespeare.txt"
    config.data.tokenizer = "characters"
    config.data.split = "tail"
    config.data.validation_fraction = 0.1

    config.optimizer.learning_rate = 1e-3
    config.optimizer.final_learning_rate = 1e-4
    config.optimizer.warmup_steps = 100
    config.optimizer.beta2 = 0.99

    config.training.steps = 2000
    config.training.batch_size = 12
    config.training.sample_prompt = "\n"
    config.training.sample_tokens = 63

    config.evaluation.every = 1000
    config.evaluation.batch_size = 96
    config.checkpoint.every = 1000
    return config

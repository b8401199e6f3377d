"""GPT-2 as it was made: OpenWebText, GPT-2's vocabulary, a context of 1024, one of the four published sizes.

    python scripts/train.py --config=configs/openwebtext.py --workdir=runs/gpt2
    python scripts/train.py --config=configs/openwebtext.py:gpt2-medium --workdir=runs/medium

480 sequences x 1,024 tokens = 491,520 tokens a step; 600,000 steps = 295 G tokens, 33 times through OpenWebText's 9 G.
nanoGPT's run of this setting on 8 A100s ends at a validation loss of about 2.85 after four days; not run here.

The text is streamed from the hub and training begins at once. Prepared tokens (18 GB) are faster and shuffled over the
whole corpus:

    python scripts/prepare_data.py --source=openwebtext --tokenizer=openai-community/gpt2 --encoder=tiktoken \\
        --validation_fraction=0.01 --out=owt
    python scripts/train.py --config=configs/openwebtext.py --workdir=runs/gpt2 --config.data.road=prepared \\
        --config.data.prepared=owt
"""

from ml_collections import ConfigDict

from gpt2_jax import default_config, preset


def get_config(size: str = "gpt2") -> ConfigDict:
    config = default_config()

    config.model.update(preset(size))
    config.model.dtype = "bfloat16"
    config.model.remat = "dots"
    config.model.resid_pdrop = config.model.embd_pdrop = config.model.attn_pdrop = 0.0

    config.data.source = "openwebtext"
    config.data.road = "stream"
    config.data.tokenizer = "openai-community/gpt2"
    config.data.encoder = "tiktoken"
    config.data.validation_fraction = 0.01
    config.data.readers = 16
    config.data.shuffle_windows = 16384

    config.optimizer.warmup_steps = 2000

    config.training.steps = 600_000
    config.training.batch_size = 480
    config.training.accumulation_steps = 5
    config.training.loss_chunks = 8
    config.training.sample_every = 5000

    config.evaluation.every = 1000
    config.evaluation.windows = 96  # of the first 45 MB, which are read before the first step
    config.evaluation.batch_size = 96
    config.checkpoint.every = 1000
    return config

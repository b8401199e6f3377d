"""GPT-2 on texts of your own or of the registry: small steps from what it knows, until validation says enough.

    python scripts/train.py --config=configs/finetune.py:text --workdir=runs/mine --config.data.paths=my_poems/
    python scripts/train.py --config=configs/finetune.py:poetry --workdir=runs/poetry
    python scripts/train.py --config=configs/finetune.py:text --workdir=runs/qa --config.data.paths=prompts.csv \\
        --config.finetune.start=runs/mine

| recipe | sequences x tokens a step | steps at most | tokens |
| --- | --- | --- | --- |
| text: your own files | 8 x 128 = 1,024 | 1,000 | 1.0 M |
| poetry: 573 poems, about 0.16 M tokens | 8 x 128 = 1,024 | 1,000 | 1.0 M, 6 times through |
| code: Python, streamed | 16 x 512 = 8,192 | 5,000 | 41 M |
| stories: TinyStories, streamed | 32 x 256 = 8,192 | 5,000 | 41 M, a tenth |
| openwebtext: streamed | 32 x 1,024 = 32,768 | 10,000 | 328 M, 4 % |

It starts from GPT-2 small, 124 M parameters: 2.0 GB with gradients and Adam's moments, 1.5 GB a checkpoint, of which
three or four stay. The rate is a tenth of that of training from scratch. Each evaluation is a checkpoint, and after
three without a lower loss the run ends. At the 300 tokens/s of 2 CPU cores 100 steps of "text" take six minutes; on an
accelerator add --config.model.dtype=bfloat16. Not run here with GPT-2's own weights.
"""

from ml_collections import ConfigDict

from gpt2_jax import InputError, default_config

# The source, sequences a step, tokens in each, parts of the batch, steps at most, steps between evaluations.
RECIPES = {
    "text": ("files", 8, 128, 1, 1000, 50),
    "poetry": ("poetry", 8, 128, 1, 1000, 50),
    "code": ("code", 16, 512, 4, 5000, 250),
    "stories": ("stories", 32, 256, 4, 5000, 250),
    "openwebtext": ("openwebtext", 32, 1024, 8, 10_000, 500),
}


def get_config(recipe: str = "text") -> ConfigDict:
    if recipe not in RECIPES:
        raise InputError(f"configs/finetune.py has no recipe {recipe!r}; it must be one of {', '.join(RECIPES)}")
    source, batch_size, sequence_length, parts, steps, every = RECIPES[recipe]
    streamed = source in ("code", "stories", "openwebtext")
    config = default_config()

    config.finetune.start = "openai-community/gpt2"
    config.model.resid_pdrop = config.model.embd_pdrop = config.model.attn_pdrop = 0.1

    config.data.source = source
    config.data.road = "stream" if streamed else "prepared"
    config.data.tokenizer = "start"
    config.data.validation_fraction = 0.01 if streamed else 0.1

    config.optimizer.learning_rate = 6e-5
    config.optimizer.final_learning_rate = 0.0
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 20

    config.training.steps = steps
    config.training.batch_size = batch_size
    config.training.sequence_length = sequence_length
    config.training.accumulation_steps = parts
    config.training.loss_chunks = 8 if recipe == "openwebtext" else 1

    config.evaluation.every = config.checkpoint.every = every
    config.evaluation.windows = 64
    config.evaluation.patience = 3
    return config

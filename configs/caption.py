"""A GPT-2 that says what it sees: digits from scratch, or images of your own before a GPT-2 that is there.

    python scripts/train.py --config=configs/caption.py:digits --workdir=runs/digits
    python scripts/caption.py --model=runs/digits --image=digit.png
    python scripts/train.py --config=configs/caption.py:folder --workdir=runs/photos --config.image.paths=photos/ \\
        --config.image.weights=clip-vit-base-patch32/

"digits": scikit-learn's 1,797 images of 8 x 8 pixels, about 1,600 to train on. A ViT of 2 layers, 64 wide, sees 16
patches of 2 x 2 pixels; 4 embeddings of what it has seen stand before "a handwritten three", which a GPT-2 of 2
layers, 64 wide, learns to write. 64 rows x 8 positions = 512 a step; 3,000 steps are 192,000 images, 119 times each,
moved by up to a pixel each way. 0.24 M parameters. Two and a half minutes of one CPU, to 180 of the 183 held-out
captions word for word (98.4 %).

"folder" (ClipCap's way): GPT-2 small as it is, no gradient for it; a CLIP, if image.weights gives one, and 10
embeddings from an MLP, which are learnt. 32 rows x 64 positions; 5,000 steps are 160,000 captions. Not run here with
weights of CLIP's or GPT-2's own.
"""

from ml_collections import ConfigDict

from gpt2_jax import InputError, default_config


def get_config(recipe: str = "digits") -> ConfigDict:
    recipes = {"digits": _digits, "folder": _folder}
    if recipe not in recipes:
        raise InputError(f"configs/caption.py has no recipe {recipe!r}; it must be one of {', '.join(recipes)}")
    return recipes[recipe](default_config())


def _digits(config: ConfigDict) -> ConfigDict:
    config.image.source = "digits"
    config.image.size = 8
    config.image.channels = 1
    config.image.patch_size = 2
    config.image.n_embd = 64
    config.image.n_layer = 2
    config.image.n_head = 4
    config.image.prefix_length = 4
    config.image.shift = 1

    config.model.n_layer = 2
    config.model.n_head = 4
    config.model.n_embd = 64
    config.model.n_positions = 16
    config.model.initializer_range = 0.05
    config.model.resid_pdrop = config.model.embd_pdrop = config.model.attn_pdrop = 0.0

    config.data.tokenizer = "bpe"

    config.optimizer.learning_rate = 2e-3
    config.optimizer.final_learning_rate = 2e-5
    config.optimizer.warmup_steps = 50
    config.optimizer.beta2 = 0.99
    config.optimizer.weight_decay = 0.3

    config.training.steps = 3000
    config.training.batch_size = 64
    config.training.sequence_length = 8
    config.training.log_every = 20
    config.training.sample_tokens = 8

    config.evaluation.every = config.checkpoint.every = 250
    return config


def _folder(config: ConfigDict) -> ConfigDict:
    config.image.source = "folder"
    config.image.paths = "images/"
    config.image.prefix_length = 10
    config.image.prefix_hidden = 3840

    config.finetune.start = "openai-community/gpt2"
    config.finetune.freeze = r"^(wte|wpe|h|ln_f)\."
    config.model.resid_pdrop = config.model.embd_pdrop = config.model.attn_pdrop = 0.0

    config.data.tokenizer = "start"

    config.optimizer.learning_rate = 3e-4
    config.optimizer.final_learning_rate = 0.0
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_steps = 200

    config.training.steps = 5000
    config.training.batch_size = 32
    config.training.sequence_length = 64
    config.training.sample_tokens = 32

    config.evaluation.every = config.checkpoint.every = 500
    config.evaluation.windows = 512
    return config

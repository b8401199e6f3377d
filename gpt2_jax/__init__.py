"""GPT-2 in JAX and Flax NNX: train, resume, sample, understand.

import gpt2_jax

lm = gpt2_jax.load("runs/quickstart")
print(lm.generate("def ", max_new_tokens=64, top_p=0.95, seed=0))
"""

from gpt2_jax.config import Config, default_config
from gpt2_jax.errors import InputError
from gpt2_jax.exporting import save
from gpt2_jax.generation.prompting import FewShot
from gpt2_jax.language_model import Generation, LanguageModel
from gpt2_jax.mixing import mix
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config, preset
from gpt2_jax.pretrained import load
from gpt2_jax.resizing import resize
from gpt2_jax.tokenizer import Tokenizer

__all__ = [
    "GPT2",
    "Config",
    "FewShot",
    "GPT2Config",
    "Generation",
    "InputError",
    "LanguageModel",
    "Tokenizer",
    "default_config",
    "load",
    "mix",
    "preset",
    "resize",
    "save",
]

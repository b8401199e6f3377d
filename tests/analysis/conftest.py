"""The tiny model with a tokenizer of characters, one a token."""

import dataclasses

import jax
import pytest

from gpt2_jax import GPT2, LanguageModel
from gpt2_jax.tokenizer_training import train_characters

CHARACTERS = "\n\t" + "".join(map(chr, range(32, 127))) + "ä中😀"


@pytest.fixture(scope="session")
def tiny_lm(tiny_model) -> LanguageModel:
    tokenizer = train_characters([CHARACTERS])
    assert len(tokenizer) == tiny_model.config.vocab_size
    return LanguageModel(tiny_model, tokenizer)


@pytest.fixture(scope="session")
def tiny_lm_of(tiny, tiny_lm):
    """`tiny_lm_of(**changes)`: a model as training has it, stacked, of another config, and a language model of it."""

    def make(**changes) -> tuple[GPT2, LanguageModel]:
        model = jax.jit(GPT2, static_argnums=0)(dataclasses.replace(tiny, **changes), jax.random.key(1))
        return model, LanguageModel(model, tiny_lm.tokenizer)

    return make

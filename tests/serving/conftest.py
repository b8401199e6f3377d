"""A tiny model that writes any bytes, and what counts compilations."""

from collections.abc import Iterator

import jax
import pytest

from gpt2_jax import GPT2, GPT2Config, LanguageModel
from gpt2_jax.tokenizer_training import train_bpe


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    """A context of 192: more than a chunk of a prompt, and than the smallest ring."""
    tokenizer = train_bpe(["the quick brown fox jumps over the lazy dog\n" * 3], 270)
    config = GPT2Config(
        vocab_size=len(tokenizer) + 2, n_positions=192, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Grows with each program that is compiled."""
    found = []
    listener = lambda name, seconds, **_: found.append(name) if "backend_compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    yield found
    jax.monitoring.unregister_event_duration_listener(listener)

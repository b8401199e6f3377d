"""A tiny model, and what it gives one token at a time, without batches, padding or chunks."""

import jax
import numpy as np
import pytest

from gpt2_jax import LanguageModel
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_bpe

TEXT = "the quick brown fox jumps over the lazy dog, and then it rains in spain again.\n"


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    """One layer, an odd vocabulary and a context of 32, with initial weights large enough that answers differ."""
    tokenizer = train_bpe([TEXT], 290)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.4
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)


@pytest.fixture(scope="session")
def naive(lm):
    """`naive(ids)`: log-probabilities float64 [n, V] of what follows each of `ids`, from the model's own logits."""
    call = jax.jit(lambda model, tokens: model(tokens))

    def log_softmax(ids) -> np.ndarray:
        assert 1 <= len(ids) <= lm.config.n_positions
        padded = np.zeros((1, lm.config.n_positions), np.int32)
        padded[0, : len(ids)] = ids
        logits = np.asarray(call(lm.model, padded)[0, : len(ids)], np.float64)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    return log_softmax


@pytest.fixture(scope="session")
def compiled():
    """`compiled()`: programs that have been compiled for log-probabilities so far."""
    from gpt2_jax.evaluation import logprobs

    return logprobs._log_probabilities._cache_size


@pytest.fixture(scope="session")
def random_pairs(lm):
    """`random_pairs(n)`: pairs of random ids, of all lengths that fit and contexts that do not."""

    def make(n: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
        rng = np.random.default_rng(seed)
        ids = lambda length: rng.integers(0, lm.config.vocab_size, length).tolist()
        context = lm.config.n_positions
        return [(ids(rng.integers(0, context + 8)), ids(rng.integers(1, context + 1))) for _ in range(n)]

    return make

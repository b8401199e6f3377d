"""The length of lines: counted against Python's own strings, and what it does to texts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax import InputError, LanguageModel
from gpt2_jax.generation import sampler
from gpt2_jax.generation.lines import characters_of_line, line_length, line_table
from gpt2_jax.generation.logits import LOWEST, History
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_bpe, train_characters

WORDS = "the rose is red é ü\nthe sea, the sea\n\nand 漢字 a rose\n"


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([WORDS * 20], 320)


def test_characters_are_those_of_the_decoded_line(bpe):
    table, random = line_table(bpe, len(bpe) + 3), np.random.default_rng(0)
    assert table.shape == (2, len(bpe) + 3) and table[:, len(bpe) :].tolist() == [[0] * 3, [-1] * 3]
    texts = [bpe.encode(WORDS[: random.integers(1, len(WORDS))]) for _ in range(40)]
    rows = np.full((40, 64), bpe.encode("\n")[0], np.int32)  # what lies past a text means nothing
    for row, text in zip(rows, texts):
        row[: len(text)] = text
    lengths = np.array(list(map(len, texts)))
    found = jax.jit(characters_of_line)(table, History(rows, lengths, lengths))
    assert found.tolist() == [len(bpe.decode(text).rpartition("\n")[2]) for text in texts]


def test_the_bias_is_linear_from_the_first_character_on_and_lifts_no_ban():
    tokenizer = train_characters(["ab\n"])
    table, (newline,) = line_table(tokenizer, 4), tokenizer.encode("\n")
    history = History(np.array([tokenizer.encode(t) for t in ("a\nbbb", "abab\n", "ababa")]), *[np.full(3, 5)] * 2)
    logits = jnp.zeros((3, 4))
    found = line_length(logits, 4.0, 0.5, table, history)
    np.testing.assert_allclose(found[:, newline], [-0.5, 0.0, 0.5])
    assert (jnp.delete(found, newline, axis=1) == 0).all()
    banned = line_length(logits.at[:, newline].set(LOWEST), 4.0, 1e30, table, history)
    assert (banned[:, newline] == LOWEST).all() and np.isfinite(line_length(logits, 1e6, 1e30, table, history)).all()


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_characters(["abcdefg \n"])
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=128, n_embd=16, n_layer=1, n_head=2, initializer_range=0.1
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(1)), tokenizer)


def mean_line(lm, line):
    options = {"max_new_tokens": 120, "eos_token_id": [], "num_return_sequences": 32}
    texts = [result.completion for result in lm.generate("a", line_length=line, **options)]
    lengths = [len(text) for whole in texts for text in whole.split("\n")[1:-1] if text]
    return np.mean(lengths), np.std(lengths)


def test_lines_come_to_the_length_that_is_asked_for(lm):
    (free, _), (short, _), (longer, _) = (mean_line(lm, line) for line in (None, (5, 0.5), (20, 0.5)))
    (certain, spread) = mean_line(lm, (20, 1e6))
    assert free == pytest.approx(9, abs=3) and short == pytest.approx(5, abs=2.5) and longer == pytest.approx(20, abs=4)
    assert certain == pytest.approx(20.5, abs=0.6) and spread < 1


def test_another_length_compiles_nothing_anew(lm):
    lm.generate("a", line_length=(5, 0.5), max_new_tokens=4)
    before = sampler.fill._cache_size(), sampler.advance._cache_size()
    lm.generate("a", line_length=[7.5, 2], max_new_tokens=4)
    assert (sampler.fill._cache_size(), sampler.advance._cache_size()) == before


def test_a_growing_bias_on_the_end_shortens_texts_and_a_shrinking_one_lengthens_them(lm):
    def mean(**options):
        results = lm.generate("a", max_new_tokens=120, num_return_sequences=32, **options)
        return np.mean([len(result.tokens) for result in results])

    free = mean()
    assert mean(exponential_decay_length_penalty=(3, 3.0)) < 0.8 * free
    assert mean(exponential_decay_length_penalty=(0, 0.5)) > free


def test_a_tokenizer_without_line_breaks():
    with pytest.raises(InputError, match="line_length needs a token with a line break, and this model's tokenizer has"):
        line_table(train_characters(["ab"]), 3)

import dataclasses

import jax
import numpy as np
import pytest

import gpt2_jax
from gpt2_jax import InputError
from gpt2_jax.analysis import probabilities as module
from gpt2_jax.analysis.probabilities import token_probabilities

SHORT, LONG = "to be or not", "The rain in Spain\n\tstays mainly in the plain. " * 2


@pytest.fixture(scope="module")
def naive(tiny_lm):
    """`naive(lm, tokens)`: float64 [V], log-probabilities after end-of-text and `tokens`."""
    forward = jax.jit(lambda model, tokens: model(tokens))

    def log_softmax(lm, tokens, begin):
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(tokens)] = tokens
        logits = np.asarray(forward(lm.model, padded)[0, begin : len(tokens)], np.float64)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    return log_softmax


@pytest.mark.parametrize("text", ["t", SHORT, LONG[:32], LONG])
def test_it_is_what_the_logits_say(tiny_lm, naive, text):
    found = token_probabilities(tiny_lm, text, top_k=5)
    ids = [tiny_lm.tokenizer.end_of_text, *tiny_lm.tokenizer.encode(text)]
    T = len(ids) - 1
    rows = [naive(tiny_lm, ids[: min(32, T)], 0)]
    for begin in range(16, T - 16, 16):  # windows of 32 that begin 16 later each, of which the later half counts
        rows.append(naive(tiny_lm, ids[begin : min(begin + 32, T)], 16))
    table, places, targets = np.concatenate(rows), np.arange(T), found.tokens
    assert table.shape == (T, 101) and found.tokens.tolist() == ids[1:] and "".join(found.labels)[0] == text[0]
    np.testing.assert_allclose(found.surprisal, -table[places, targets] / np.log(2), atol=1e-4)
    np.testing.assert_allclose(found.entropy, -(np.exp(table) * table).sum(-1) / np.log(2), atol=1e-4)
    np.testing.assert_array_equal(found.rank, 1 + (table > table[places, targets][:, None] + 1e-9).sum(-1))
    np.testing.assert_array_equal(found.top_tokens, np.argsort(-table, axis=-1)[:, :5])
    np.testing.assert_allclose(found.top_logprobs, -np.sort(-table, axis=-1)[:, :5], atol=1e-4)
    assert found.top_labels[0] == gpt2_jax.analysis.token_labels.labels(tiny_lm.tokenizer, found.top_tokens[0])
    assert found.perplexity == pytest.approx(np.exp(-table[places, targets].mean()), rel=1e-4)


def test_a_generated_text_has_the_probabilities_that_it_was_drawn_with(tiny_lm):
    end = tiny_lm.tokenizer.end_of_text
    written = tiny_lm.generate([end, 5, 6], max_new_tokens=8, logprobs=4, seed=3)
    found = token_probabilities(tiny_lm, written, top_k=4)
    assert found.tokens.tolist() == written.tokens[1:].tolist()  # what begins the text is not predicted
    new = slice(2, None)
    np.testing.assert_allclose(found.surprisal[new], -written.logprobs / np.log(2), atol=1e-4)
    np.testing.assert_array_equal(found.top_tokens[new], written.top_tokens)
    np.testing.assert_allclose(found.top_logprobs[new], written.top_logprobs, atol=1e-4)


def test_other_texts_compile_nothing(tiny_lm):
    token_probabilities(tiny_lm, LONG[:20])
    before = module._probabilities._cache_size()
    for text in (LONG[:17], LONG[5:36], LONG):
        token_probabilities(tiny_lm, text)
    assert module._probabilities._cache_size() == before


def test_a_mix_and_a_model_of_another_engine_have_probabilities(tiny_lm, tiny_lm_of):
    mixed = gpt2_jax.mix(tiny_lm, expert=tiny_lm, alpha=1.0)  # logits twice as large
    one, both = token_probabilities(tiny_lm, SHORT, 1), token_probabilities(mixed, SHORT, 1)
    np.testing.assert_array_equal(one.rank, both.rank)
    assert (both.entropy < one.entropy).all()
    (_, splash), (_, xla) = tiny_lm_of(attention="splash", attn_pdrop=0.1), tiny_lm_of()
    for name, value in dataclasses.asdict(token_probabilities(xla, SHORT)).items():
        np.testing.assert_array_equal(getattr(token_probabilities(splash, SHORT), name), value)


def test_what_has_no_probabilities(tiny_lm):
    for nothing in ("", [], [tiny_lm.tokenizer.end_of_text]):
        with pytest.raises(InputError, match="the text is empty: it has no token whose probability could be"):
            token_probabilities(tiny_lm, nothing)
    for k in (0, 102, 2.0):
        with pytest.raises(InputError, match=f"top_k is {k}; it must be a whole number from 1 to the vocabulary's 101"):
            token_probabilities(tiny_lm, "a", k)

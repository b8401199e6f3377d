"""Each control of a history against a few lines of NumPy, row by row, on histories whose unused places are garbage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax.generation import logits as controls
from gpt2_jax.generation.logits import LOWEST, History

B, S, V = 3, 8, 6  # so small a vocabulary that repetitions abound
tokens = st.integers(0, V - 1)
phrases = st.lists(st.lists(tokens, min_size=1, max_size=3), min_size=1, max_size=4, unique_by=tuple)
numbers = st.floats(-3, 3, width=32)


@st.composite
def cases(draw):
    """Logits [B, V], of which one may be banned already, a `History`, and each row's text."""
    logits = np.array(draw(st.lists(st.lists(numbers, min_size=V, max_size=V), min_size=B, max_size=B)), np.float32)
    if draw(st.booleans()):
        logits[0, draw(tokens)] = LOWEST
    everything = np.array(draw(st.lists(st.lists(tokens, min_size=S, max_size=S), min_size=B, max_size=B)), np.int32)
    lengths = np.array([draw(st.integers(1, S)) for _ in range(B)], np.int32)
    prompts = np.array([draw(st.integers(1, int(length))) for length in lengths], np.int32)
    texts = [row[:length].tolist() for row, length in zip(everything, lengths)]
    return logits, History(everything, lengths, prompts), texts


def aligned(phrases):
    """int32 [4, 3] as `Sampling.of` makes them."""
    return np.array([[-1] * (3 - len(p)) + p for p in phrases] + [[-1] * 3] * (4 - len(phrases)), np.int32)


def completes(text, phrase):
    return len(text) >= len(phrase) - 1 and text[len(text) + 1 - len(phrase) :] == phrase[:-1]


def check(transform, case, *arguments, expected):
    """`expected(row of logits, text, how many tokens are new)` changes a row of float64 in place."""
    logits, history, texts = case
    want = logits.astype(np.float64)
    for row, text, prompt in zip(want, texts, history.prompt_lengths):
        expected(row, text, len(text) - prompt)
    found = transform(logits, *arguments, history)
    np.testing.assert_allclose(found, np.clip(want, LOWEST, -LOWEST), rtol=1e-5, atol=1e-5)
    assert np.array_equal(np.asarray(found) == LOWEST, np.isneginf(want) | (want <= LOWEST))


repetition_penalty = jax.jit(controls.repetition_penalty)
presence_and_frequency = jax.jit(controls.presence_and_frequency_penalty)
no_repeat_ngram = jax.jit(controls.no_repeat_ngram)
bad_words = jax.jit(controls.bad_words)
sequence_bias = jax.jit(controls.sequence_bias)
exponential_decay = jax.jit(controls.exponential_decay)
min_new_tokens = jax.jit(controls.min_new_tokens)


@settings(max_examples=50, deadline=None)
@given(cases(), st.floats(0.25, 5, width=32))
def test_repetition_penalty(case, penalty):
    def expected(row, text, new):
        for token in set(text):
            row[token] *= penalty if row[token] < 0 else 1 / penalty

    check(repetition_penalty, case, penalty, expected=expected)


@settings(max_examples=50, deadline=None)
@given(cases(), numbers, numbers)
def test_presence_and_frequency_penalties_count_new_tokens_alone(case, presence, frequency):
    def expected(row, text, new):
        counts = np.bincount(text[len(text) - new :], minlength=V)
        row -= np.where(row > LOWEST, presence * (counts > 0) + frequency * counts, 0)

    check(presence_and_frequency, case, presence, frequency, expected=expected)


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(0, S + 2))
def test_no_repeat_ngram(case, n):
    def expected(row, text, new):
        starts = range(len(text) - n + 1) if n else []
        row[[text[i + n - 1] for i in starts if text[i : i + n - 1] == text[len(text) - n + 1 :]]] = -np.inf

    check(no_repeat_ngram, case, n, expected=expected)


@settings(max_examples=80, deadline=None)
@given(cases(), phrases)
def test_bad_words(case, phrases):
    def expected(row, text, new):
        row[[phrase[-1] for phrase in phrases if completes(text, phrase)]] = -np.inf

    check(lambda logits, history: bad_words(logits, aligned(phrases), history), case, expected=expected)


@settings(max_examples=80, deadline=None)
@given(cases(), phrases, st.lists(numbers, min_size=4, max_size=4))
def test_sequence_bias(case, phrases, biases):
    def expected(row, text, new):
        for phrase, bias in zip(phrases, biases):
            row[phrase[-1]] += bias * (completes(text, phrase) and row[phrase[-1]] > LOWEST)

    check(
        lambda logits, history: sequence_bias(logits, aligned(phrases), np.float32(biases), history),
        case,
        expected=expected,
    )


@settings(max_examples=50, deadline=None)
@given(cases(), st.integers(0, S), st.lists(st.integers(-1, V - 1), min_size=2, max_size=2))
def test_min_new_tokens(case, least, ends):
    def expected(row, text, new):
        row[[end for end in ends if end >= 0 and new < least]] = -np.inf

    check(lambda logits, history: min_new_tokens(logits, least, np.array(ends), history), case, expected=expected)


@settings(max_examples=50, deadline=None)
@given(
    cases(), st.integers(0, 5), st.sampled_from([0.5, 0.9, 1.0, 1.3, 1e9, 1e30]),
    st.lists(tokens, max_size=2, unique=True),
)  # fmt: skip
def test_exponential_decay(case, start, factor, ends):
    def expected(row, _, new):
        with np.errstate(over="ignore"):
            for end in ends if new > start else ():
                row[end] += abs(row[end]) * (min(factor ** (new - start), -LOWEST) - 1) * (row[end] > LOWEST)

    padded = np.array(ends + [-1] * (2 - len(ends)))
    check(lambda x, history: exponential_decay(x, start, factor, padded, history), case, expected=expected)


def test_forced_leaves_one_token_in_the_rows_named():
    logits = np.arange(8, dtype=np.float32).reshape(2, 4)
    found = controls.forced(logits, 2, np.array([True, False]))
    np.testing.assert_array_equal(found, [[LOWEST, LOWEST, 0, LOWEST], [4, 5, 6, 7]])


def test_ban_takes_tokens_for_all_rows_or_each():
    logits = np.zeros((2, 3), np.float32)
    np.testing.assert_array_equal(controls.ban(logits, np.array([2, -1])) == LOWEST, [[0, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(controls.ban(logits, np.array([[0], [-1]])) == LOWEST, [[1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("bias", [LOWEST, -1e30, 1e30])
def test_nothing_becomes_infinite(bias):
    history = History(np.array([[0, 1, 0]]), np.array([3]), np.array([1]))
    logits = np.array([[LOWEST, -LOWEST, 1.0]], np.float32)
    for found in (
        controls.repetition_penalty(logits, 1e30, history),
        controls.repetition_penalty(logits, 1e-30, history),
        controls.presence_and_frequency_penalty(logits, 1e30, -1e30, history),
        controls.sequence_bias(logits, np.array([[0], [0], [1], [1]]), np.full(4, bias, np.float32), history),
    ):
        assert jnp.isfinite(found).all()

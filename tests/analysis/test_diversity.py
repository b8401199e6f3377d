import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax import InputError
from gpt2_jax.analysis.diversity import distinct, ngrams, repetition, self_bleu, words, zipf_coefficient

texts = st.lists(st.text("abc", min_size=1, max_size=12), min_size=2, max_size=6)


def all_ngrams(text, n):
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def bleu(text, references, n):
    """BLEU with method 1 of Chen and Cherry, straight from the definition."""
    logs = []
    for order in range(1, n + 1):
        mine = all_ngrams(text, order)
        matched = sum(
            min(mine.count(g), max(all_ngrams(reference, order).count(g) for reference in references))
            for g in set(mine)
        )
        if order == 1 and not matched:
            return 0.0
        logs.append(math.log((matched or 0.1) / (len(mine) or 1)))
    nearest = min((abs(len(r) - len(text)), len(r)) for r in references)[1]
    return min(1.0, math.exp(1 - nearest / len(text))) * math.exp(sum(logs) / n)


@settings(max_examples=200, deadline=None)
@given(texts, st.integers(1, 4))
def test_self_bleu_is_the_mean_of_each_text_against_the_others(texts, n):
    want = [bleu(text, texts[:i] + texts[i + 1 :], n) for i, text in enumerate(texts)]
    assert self_bleu(texts, n) == pytest.approx(np.mean(want), abs=1e-12)


def test_self_bleu_is_that_of_nltk():
    sentences = ["the cat sat on the mat", "the cat sat on a hat today", "a dog ran off"]
    assert self_bleu([sentence.split() for sentence in sentences]) == pytest.approx(0.30452545, abs=1e-8)  # nltk 3.10.4


@settings(deadline=None)
@given(texts, st.integers(1, 3))
def test_the_counts_are_those_of_the_definitions(texts, n):
    everything = [g for text in texts for g in all_ngrams(text, n)]
    if not everything:
        with pytest.raises(InputError, match=f"none of {len(texts)} texts has {n} tokens"):
            distinct(texts, n)
        return
    assert distinct(texts, n) == len(set(everything)) / len(everything)
    shares = [1 - len(set(g)) / len(g) for text in texts if (g := all_ngrams(text, n))]
    assert repetition(texts, n) == pytest.approx(np.mean(shares))
    assert ngrams(texts[0], n).total() == len(all_ngrams(texts[0], n))


@settings(deadline=None)
@given(texts)
def test_copies_are_less_diverse(texts):
    twice = texts + texts
    assert distinct(twice, 1) == distinct(texts, 1) / 2
    assert repetition(twice, 1) == pytest.approx(repetition(texts, 1))
    assert self_bleu(twice, 1) == pytest.approx(1)


def test_token_ids_are_tokens_too():
    assert distinct([np.array([1, 2, 1]), np.array([2])], 1) == 0.5
    assert repetition([np.array([5, 5, 5, 5])], 2) == pytest.approx(2 / 3)


def test_zipf_finds_the_exponent_of_a_power_law():
    for exponent in (0.8, 1.0, 1.5):
        text = [rank for rank in range(1, 200) for _ in range(round(1e6 * rank**-exponent))]
        assert zipf_coefficient([text]) == pytest.approx(exponent, abs=1e-3)


def test_words_are_words_and_marks():
    assert words("It's 3 o'clock, I'd say: ÄÖ_x!") == [
        "It", "'", "s", "3", "o", "'", "clock", ",", "I", "'", "d", "say", ":", "ÄÖ_x", "!"
    ]  # fmt: skip


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(InputError, match="the number of texts is 1; it must be at least 2: self-BLEU compares each"):
        self_bleu(["ab"])
    with pytest.raises(InputError, match="text 1 has no tokens; self-BLEU needs some of each: leave it out"):
        self_bleu(["ab", ""])
    with pytest.raises(InputError, match="n is 0; it must be a whole number, at least 1"):
        distinct(["ab"], 0)
    with pytest.raises(InputError, match="none of 2 texts has 3 tokens, so there are no 3-grams; give longer texts"):
        repetition(["ab", "c"], 3)
    with pytest.raises(InputError, match="the number of different tokens is 1; it must be at least 2 to fit a line"):
        zipf_coefficient(["aaaa"])

"""Judges: each tells kinds of text apart that are known."""

import random

import jax
import pytest

from gpt2_jax import InputError, LanguageModel
from gpt2_jax.evaluation.judges import NaiveBayes, by_domain_models
from gpt2_jax.evaluation.scoring import score
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_characters


def texts_of(letters, n=40):
    draw = random.Random(letters)
    return ["".join(draw.choices(letters, k=40)) for _ in range(n)]


def test_naive_bayes_tells_new_texts_apart():
    low, high = texts_of("aaabc"), texts_of("abccc")
    judge = NaiveBayes({"low": low[:30], "high": high[:30]}, n=2)
    assert judge(low[30:]) == ["low"] * 10 and judge(high[30:]) == ["high"] * 10
    assert judge(["", "a"]) == ["", ""]
    assert NaiveBayes({"x": ["abab"], "y": ["abba"]}, n=2)(["zzzz"]) in (["x"], ["y"])  # never seen: no error


def test_naive_bayes_is_bayes_with_add_one():
    judge = NaiveBayes({"x": ["aab"], "y": ["abb", "b"]}, n=1)
    # p(a|x) = 3/6, p(b|x) = 2/6; p(a|y) = 2/7, p(b|y) = 4/7
    assert judge(["a", "b", "aab", "abb"]) == ["x", "y", "x", "y"]


def test_naive_bayes_needs_kinds_and_texts():
    with pytest.raises(InputError, match="there are texts of 1 kinds; give some of two or more to tell apart"):
        NaiveBayes({"x": ["abcd"]})
    with pytest.raises(InputError, match="the texts of 'y' have no 4 characters in a row; give longer ones"):
        NaiveBayes({"x": ["abcd"], "y": ["abc"]})


def test_domain_models_find_what_they_find_most_probable():
    def make(seed, alphabet):
        tokenizer = train_characters([alphabet])
        config = GPT2Config(
            vocab_size=len(tokenizer), n_positions=16, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5
        )
        return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(seed)), tokenizer)

    models = {"x": make(0, "abcd"), "y": make(1, "dcba ")}  # of other vocabularies
    texts = [*texts_of("abcd", 6), "ab", ""]
    found = by_domain_models(models)(texts)
    for text, kind in zip(texts[:7], found):
        fits = text[:16]
        nats = {k: -score(lm, [([], lm.tokenizer.encode(fits))])[0].total for k, lm in models.items()}
        assert kind == min(nats, key=nats.get)
    assert found[7] == "" and set(found) == {"x", "y", ""}
    with pytest.raises(InputError, match="there are 1 domain models; give two or more, of a kind each"):
        by_domain_models({"x": models["x"]})

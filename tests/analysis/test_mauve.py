import jax
import numpy as np
import pytest

from gpt2_jax import InputError, LanguageModel
from gpt2_jax.analysis.mauve import divergence_curve, features, frontier_integral, mauve
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_characters


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_characters(["abc "])
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)


def test_features_are_the_state_after_the_last_token_whatever_stands_beside(lm):
    texts = ["a", "abc abc", "ab" * 9, "c b", "ab" * 40]
    found = features(lm, texts, batch_size=2)
    assert found.dtype == np.float32
    rows = [lm.tokenizer.encode(text)[:32] for text in texts]
    states = jax.jit(GPT2.hidden)(lm.model, np.array([row + [0] * (32 - len(row)) for row in rows]))
    want = [of_row[len(row) - 1] for row, of_row in zip(rows, states)]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_the_curve_and_the_integral_are_those_of_mauve_text():
    p, q = np.array([0.0, 0.5, 0.3, 0.2]), np.array([0.4, 0.1, 0.5, 0.0])
    curve = divergence_curve(p, q)
    assert curve.shape == (27, 2) and curve[0].tolist() == [1, 0] and curve[-1].tolist() == [0, 1]
    np.testing.assert_allclose(curve[13], [0.2146625258399797, 0.2478709341572747], rtol=1e-9)  # by mauve-text 0.4.0
    assert frontier_integral(p, q) == pytest.approx(0.41570104312124445, rel=1e-9)
    assert frontier_integral(p, p) == 0 and frontier_integral(np.eye(2)[0], np.eye(2)[1]) == pytest.approx(1)


def test_the_score_falls_as_two_sets_move_apart():
    rng = np.random.default_rng(0)
    p = rng.normal(size=(300, 8)) + 1
    scores = []
    for shift in (0, 1, 4):
        q = rng.normal(size=(300, 8)) + 1
        q[:, :2] += shift
        scores.append(mauve(p, q).score)
    assert scores[0] > 0.9 and scores[0] > scores[1] > scores[2] > 0 and scores[2] < 0.05
    same = mauve(p, p)
    assert same.score == pytest.approx(1) and same.frontier_integral == 0 and same.buckets == 30
    assert mauve(p, p[:50]).buckets == 5 and mauve(p, q, seed=3).score == mauve(p, q, seed=3).score


def test_features_that_are_all_alike_are_alike():
    assert mauve(np.ones((5, 3)), np.ones((5, 3))).score == pytest.approx(1)


@pytest.mark.parametrize(
    ("p", "q", "buckets", "message"),
    [
        (np.ones((3, 4)), np.ones((3, 5)), None, r"q has the shape \(3, 5\); it must be finite features \[texts, 4\]"),
        (np.ones((1, 4)), np.ones((3, 4)), None, r"p has the shape \(1, 4\); it must be finite .* at least 2 texts"),
        (np.ones((3, 4)), np.full((3, 4), np.nan), None, "q has the shape .* it must be finite"),
        (np.ones((3, 4)), np.ones((3, 4)), 7, "buckets is 7; it must be from 2 to the number of all texts, 6"),
    ],
)
def test_wrong_features(p, q, buckets, message):
    with pytest.raises(InputError, match=message):
        mauve(p, q, buckets=buckets)


def test_texts_without_features(lm):
    with pytest.raises(InputError, match="the number of texts is 0; it must be at least 1"):
        features(lm, [])
    with pytest.raises(InputError, match="text 1 is empty and has no features; leave it out"):
        features(lm, ["a", ""])

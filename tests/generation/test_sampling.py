import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax import InputError
from gpt2_jax.generation.filters import keep_top_k, keep_top_p
from gpt2_jax.generation.logits import LOWEST, History
from gpt2_jax.generation.sampling import Sampling, pick, warp

V = 50
rows = st.lists(
    st.floats(-50, 50, width=32, allow_subnormal=False), min_size=V, max_size=V
).map(lambda values: np.array([values], np.float32))  # fmt: skip
top_k = jax.jit(keep_top_k)
top_p = jax.jit(keep_top_p)


@jax.jit
def choose(logits, sampling, keys):
    empty = jnp.zeros(len(logits), int)
    history = History(jnp.zeros((len(logits), 4), int), empty, empty)
    return pick(logits, sampling, history, keys, end_tokens=jnp.array([-1]), limit=9)


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(1, V))
def test_top_k_keeps_the_k_largest_and_ties(logits, k):
    kept = np.asarray(top_k(logits, k) > LOWEST)
    assert np.array_equal(kept, logits >= np.sort(logits)[:, -k, None])


@settings(max_examples=60, deadline=None)
@given(rows, st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits, p):
    kept = np.asarray(top_p(logits, p) > LOWEST)
    probabilities = np.asarray(jax.nn.softmax(logits))
    assert kept.any()
    lowest = logits[kept].min()
    assert np.array_equal(kept, logits >= lowest)  # the most probable ones
    assert probabilities[kept].sum() >= p - 1e-5
    assert probabilities[logits > lowest].sum() < p + 1e-5  # one fewer would not do


def test_filters_accept_infinities_and_extremes():
    logits = jnp.array([[LOWEST, -jnp.inf, 0.0, 1.0], [3e38, -3e38, 0.0, -0.0]])
    assert np.array_equal(np.asarray(keep_top_k(logits, 2))[0] > LOWEST, [False, False, True, True])
    assert np.array_equal(np.asarray(keep_top_p(logits, 0.5))[1] > LOWEST, [True, False, False, False])


def test_order_is_temperature_then_top_k_then_top_p():
    """Halving the temperature squares the odds before top-p looks at them; top-k renormalises for it."""
    logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    kept = lambda **settings: np.asarray(warp(logits, Sampling(**settings)) > LOWEST)[0].sum()
    assert kept(top_p=0.75) == 3 and kept(temperature=0.5, top_p=0.75) == 2
    assert kept(top_p=0.55) == 2 and kept(top_k=2, top_p=0.55) == 1
    np.testing.assert_array_equal(warp(logits, Sampling()), logits)


def test_draws_follow_the_distribution():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    logits = jnp.broadcast_to(jnp.log(probabilities), (20_000, 4)).astype(jnp.float32)
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = np.bincount(choose(logits, Sampling(), keys), minlength=4) / 20_000
    np.testing.assert_allclose(draws, probabilities, atol=0.015)
    hot = np.bincount(choose(logits, Sampling(temperature=0.5), keys), minlength=4) / 20_000
    np.testing.assert_allclose(hot, probabilities**2 / (probabilities**2).sum(), atol=0.015)


def test_greedy_needs_no_luck_and_tiny_temperatures_agree_with_it():
    logits = jax.random.normal(jax.random.key(1), (8, 30)) * 100
    keys = jax.random.split(jax.random.key(0), 8)
    for temperature in (0.0, 1e-9, 1e-3):
        np.testing.assert_array_equal(choose(logits, Sampling(temperature=temperature), keys), logits.argmax(-1))


def test_other_settings_compile_nothing_anew():
    compiled = jax.jit(lambda *arguments: choose(*arguments))
    logits, keys = jnp.zeros((1, 5)), jax.random.split(jax.random.key(0), 1)
    for settings_ in (Sampling(), Sampling(0), Sampling(0.0), Sampling(0.7, 3, 0.9), Sampling(1, 3.0, 1)):
        compiled(logits, settings_, keys)
    assert compiled._cache_size() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature is -0.1; it must be 0 \(greedy\) or above"),
        ({"temperature": float("nan")}, "temperature is nan; it must be 0"),
        ({"top_k": -1}, "top_k is -1; it must be a whole number"),
        ({"top_k": 1.5}, "top_k is 1.5; it must be a whole number"),
        ({"top_p": 0}, r"top_p is 0; it must be in \(0, 1\]"),
        ({"top_p": 1.01}, r"top_p is 1.01; it must be in \(0, 1\]"),
        ({"top_p": float("nan")}, "top_p is nan"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        Sampling(**options)

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax.generation import chain, filters
from gpt2_jax.generation import logits as controls
from gpt2_jax.generation.chain import pick, process, transform, warp
from gpt2_jax.generation.draw import BLOCK, FEW, draw, most_probable
from gpt2_jax.generation.logits import LOWEST, History
from gpt2_jax.generation.sampling import Sampling

V = 30
HISTORY = History(np.array([[1, 2, 3, 1, 2, 0], [4, 4, 9, 9, 9, 9]]), np.array([5, 2]), np.array([3, 2]))
ENDS = np.array([28, 29])
LIMIT = 7
# Every scalar at a value that is on.
ON = {
    "temperature": 0.7, "top_k": 12, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95, "epsilon_cutoff": 1e-3,
    "eta_cutoff": 1e-3, "repetition_penalty": 1.3, "presence_penalty": 0.3, "frequency_penalty": 0.2,
    "no_repeat_ngram_size": 2, "min_new_tokens": 3,
}  # fmt: skip
LISTS = {
    "bad_words_ids": [[5], [1, 2, 6]],
    "sequence_bias": {(7,): 2.0, (4, 4, 8): -1.5, (9,): -float("inf")},
    "suppress_tokens": [10],
    "begin_suppress_tokens": [11, 12],
}


def logits(seed=0, rows=2, vocabulary=V):
    return jax.random.normal(jax.random.key(seed), (rows, vocabulary)) * 3


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@jax.jit
def choose(logits, sampling, keys):
    """`pick` after an empty text."""
    empty = jnp.zeros(len(logits), int)
    history = History(jnp.zeros((len(logits), 4), int), empty, empty)
    return pick(logits, sampling, history, keys, end_tokens=jnp.array([-1]), limit=9)


jit_process = jax.jit(process)
jit_transform = jax.jit(transform)
jit_pick = jax.jit(pick)
jit_warp = jax.jit(warp)


def processed(x, history=HISTORY, ends=ENDS, **settings_):
    return jit_process(x, Sampling.of(V, **settings_), history, end_tokens=ends, limit=LIMIT)


def banned(x):
    return [np.flatnonzero(row).tolist() for row in np.asarray(x) == LOWEST]


@jax.jit
def one_by_one(x, s):
    """The controls of `ON` and `LISTS` in the order of `transformers`: before the filters, and after them."""
    x = controls.sequence_bias(x, *s.sequence_bias, HISTORY)
    x = controls.repetition_penalty(x, s.repetition_penalty, HISTORY)
    x = controls.presence_and_frequency_penalty(x, s.presence_penalty, s.frequency_penalty, HISTORY)
    x = controls.no_repeat_ngram(x, s.no_repeat_ngram_size, HISTORY)
    x = controls.bad_words(x, s.bad_words_ids, HISTORY)
    x = controls.min_new_tokens(x, s.min_new_tokens, ENDS, HISTORY)
    x = controls.ban(x, s.suppress_tokens)
    before = x = controls.ban(x, jnp.array([[-1, -1], [11, 12]]))
    x = filters.keep_top_k(controls.finite(x / s.temperature), s.top_k)
    x = filters.keep_typical(filters.keep_min_p(filters.keep_top_p(x, s.top_p), s.min_p), s.typical_p)
    return before, filters.keep_eta(filters.keep_epsilon(x, s.epsilon_cutoff), s.eta_cutoff)


@pytest.mark.parametrize("seed", range(5))
def test_the_chain_is_in_the_order_of_transformers(seed):
    s = Sampling.of(V, **ON, **LISTS)
    before, after = one_by_one(logits(seed), s)
    found = jit_process(logits(seed), s, HISTORY, end_tokens=ENDS, limit=LIMIT)
    np.testing.assert_allclose(found, before, rtol=1e-5)
    found = jit_transform(logits(seed), s, HISTORY, end_tokens=ENDS, limit=LIMIT)
    np.testing.assert_allclose(found, after, rtol=1e-5)


def test_order_matters_and_is_temperature_then_top_k_then_top_p():
    """Halving the temperature squares the odds before top-p looks at them; top-k renormalises for it."""
    x = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    kept = lambda **settings_: np.asarray(jit_warp(x, Sampling(**settings_)) > LOWEST)[0].sum()
    assert kept(top_p=0.75) == 3 and kept(temperature=0.5, top_p=0.75) == 2
    assert kept(top_p=0.55) == 2 and kept(top_k=2, top_p=0.55) == 1
    np.testing.assert_array_equal(jit_warp(x, Sampling()), x)


def test_controls_that_are_off_change_nothing():
    np.testing.assert_array_equal(processed(logits()), logits())


def test_lists_ban_where_they_should():
    x = processed(logits(), bad_words_ids=[[5], [1, 2, 6]], suppress_tokens=[10], begin_suppress_tokens=[11])
    assert banned(x) == [[5, 6, 10], [5, 10, 11]]
    assert banned(processed(logits(), min_new_tokens=2)) == [[], [28, 29]]


def test_forced_tokens_come_first_and_last():
    first = processed(logits(), forced_bos_token_id=3, begin_suppress_tokens=[4])
    assert [len(row) for row in banned(first)] == [0, V - 1] and first[1, 3] == 0
    one_later = dataclasses.replace(HISTORY, lengths=np.array([4, 3]))
    assert banned(processed(logits(), one_later, forced_bos_token_id=3, begin_suppress_tokens=[4])) == [[4], [4]]
    last = dataclasses.replace(HISTORY, lengths=HISTORY.prompt_lengths + np.array([LIMIT - 1, LIMIT - 2]))
    forced_end = processed(logits(), last, forced_eos_token_id=28, min_new_tokens=9)
    assert [len(row) for row in banned(forced_end)] == [V - 1, 2] and forced_end[0, 28] == 0


def test_a_row_without_a_token_left_ends():
    everything = {(token,): -float("inf") for token in range(V)}
    only_end = processed(logits(), sequence_bias=everything)
    np.testing.assert_array_equal(only_end.argmax(-1), [28, 28])
    assert [len(row) for row in banned(only_end)] == [V - 1, V - 1]
    for no_end in (np.array([-1]), np.array([], int)):
        np.testing.assert_array_equal(
            processed(logits(), ends=no_end, sequence_bias=everything).argmax(-1), logits().argmax(-1)
        )
    for temperature in (0.0, 1.0):
        s = Sampling.of(V, sequence_bias=everything, temperature=temperature, top_k=3)
        np.testing.assert_array_equal(jit_pick(logits(), s, HISTORY, keys(2), end_tokens=ENDS, limit=LIMIT), [28, 28])


def test_draws_follow_the_distribution():
    probabilities = np.array([0.5, 0.3, 0.15, 0.05])
    x = jnp.broadcast_to(jnp.log(probabilities), (20_000, 4)).astype(jnp.float32)
    draws = np.bincount(choose(x, Sampling(), keys(20_000)), minlength=4) / 20_000
    np.testing.assert_allclose(draws, probabilities, atol=0.015)
    hot = np.bincount(choose(x, Sampling(temperature=0.5), keys(20_000)), minlength=4) / 20_000
    np.testing.assert_allclose(hot, probabilities**2 / (probabilities**2).sum(), atol=0.015)


def test_draws_follow_the_distribution_over_many_blocks():
    """Kolmogorov's distance of 20,000 draws from 1,000 tokens; 1.95 / sqrt(n) has probability 0.001."""
    x = np.asarray(logits(rows=1, vocabulary=1000))[0]
    p = np.exp(x.astype(float)) / np.exp(x.astype(float)).sum()
    uniforms = jax.random.uniform(jax.random.key(5), (20_000, 2))
    draws = jax.jit(jax.vmap(lambda u: draw(x[None], u[None])[0]))(uniforms)
    seen = np.bincount(draws, minlength=1000) / 20_000
    assert np.abs(np.cumsum(seen) - np.cumsum(p)).max() < 1.95 / np.sqrt(20_000)


edges = st.sampled_from([0.0, 2.0**-23, 0.5, 1 - 2.0**-23]) | st.floats(0, 1 - 2.0**-23, width=32)
drawn = jax.jit(draw)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 299), min_size=1, max_size=9), st.floats(0, 80), st.integers(0, 9), edges, edges)
def test_what_is_banned_is_never_drawn(allowed, spread, seed, first, second):
    x = np.full((1, 300), LOWEST, np.float32)
    x[0, list(allowed)] = np.random.default_rng(seed).normal(size=len(allowed)) * spread
    assert int(drawn(x, np.array([[first, second]], np.float32))[0]) in allowed


draw_few = jax.jit(chain._draw)
draw_all = jax.jit(lambda x, s, uniforms: draw(warp(x, s), uniforms))


@pytest.mark.parametrize("top_k", [0, 1, 50, FEW, FEW + 1])
def test_few_blocks_draw_the_same_tokens_as_all(top_k):
    x = np.array(logits(top_k, rows=4, vocabulary=FEW * BLOCK + 700))
    x[1, 9:] = LOWEST
    x[2] = np.round(x[2])  # full of ties
    s = Sampling(top_k=top_k, top_p=0.9, temperature=1.3)
    for rows in (x[:2], x[2:]):
        for uniforms in jax.random.uniform(jax.random.key(1), (8, 2, 2)):
            np.testing.assert_array_equal(draw_few(rows, s, uniforms), draw_all(rows, s, uniforms))


def test_a_row_does_not_depend_on_the_rows_beside_it():
    s = Sampling.of(V, **ON, **LISTS)
    together = [jit_pick(logits(i), s, HISTORY, keys(2, i), end_tokens=ENDS, limit=LIMIT) for i in range(20)]
    for i, tokens in enumerate(together):
        alone = jax.tree.map(lambda x: x[1:], HISTORY)
        one = jit_pick(logits(i)[1:], s, alone, keys(2, i)[1:], end_tokens=ENDS, limit=LIMIT)
        np.testing.assert_array_equal(one, tokens[1:])


def test_greedy_needs_no_luck_and_tiny_temperatures_agree_with_it():
    x = logits(1, 8) * 30
    for temperature in (0.0, 1e-9, 1e-3):
        np.testing.assert_array_equal(choose(x, Sampling(temperature=temperature), keys(8)), x.argmax(-1))


@pytest.mark.parametrize("vocabulary", [1, 127, 128, 300])
def test_the_most_probable_token_is_the_first_of_equals(vocabulary):
    x = np.round(np.asarray(logits(vocabulary, 16, vocabulary)) / 3)
    np.testing.assert_array_equal(most_probable(x), x.argmax(-1))
    np.testing.assert_array_equal(most_probable(np.full((1, vocabulary), LOWEST, np.float32)), [0])


def test_other_settings_compile_nothing_anew():
    compiled = jax.jit(lambda x, s: pick(x, s, HISTORY, keys(2), end_tokens=ENDS, limit=LIMIT))
    for settings_ in (
        {}, {"temperature": 0}, ON, {"temperature": 1, "top_k": 3.0, "top_p": 1},
        {"forced_bos_token_id": 3, "forced_eos_token_id": 4}, {"temperature": np.float32(0.5), "top_k": np.int64(2)},
        *({name: value} for name, value in ON.items()),
    ):  # fmt: skip
        compiled(logits(), Sampling.of(V, **settings_))
    assert compiled._cache_size() == 1
    for n in (2, 3, 4):
        phrases = [[i] * n for i in range(n)]
        compiled(logits(), Sampling.of(V, bad_words_ids=phrases, suppress_tokens=range(9, 9 + n)))
    assert compiled._cache_size() == 2

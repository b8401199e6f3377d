"""Each filter against its definition in NumPy, float64; what lies within rounding of a bound may go either way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax.generation import filters
from gpt2_jax.generation.logits import LOWEST

V = 50
CLOSE = 1e-5
rows = st.lists(
    st.floats(-50, 50, width=32, allow_subnormal=False), min_size=V, max_size=V
).map(lambda values: np.array([values], np.float32))  # fmt: skip
fractions = st.floats(0.01, 0.99)
FILTERS = {name: jax.jit(getattr(filters, f"keep_{name}"), static_argnames="at_least")
           for name in ("top_k", "top_p", "min_p", "typical", "epsilon", "eta")}  # fmt: skip


def keep(name, logits, value, at_least=1):
    """What the filter keeps [1, V]; all that it keeps is unchanged."""
    found = np.asarray(FILTERS[name](logits, value, at_least=at_least))
    kept = found > LOWEST
    np.testing.assert_array_equal(found[kept], logits[kept])
    assert kept.any()
    return kept


def log_probabilities(logits):
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def check_bound(kept, p, bound):
    """Kept are the tokens of probability `bound` or more, and the most probable one."""
    assert kept[(p > bound * (1 + CLOSE)) | (p == p.max())].all()
    assert not kept[(p < bound * (1 - CLOSE)) & (p < p.max() * (1 - CLOSE))].any()


def check_fewest(kept, p, distance, mass):
    """Kept are the fewest tokens of least `distance` that reach probability `mass`."""
    farthest = distance[kept].max()
    assert kept[distance < farthest - CLOSE].all()
    assert p[kept].sum() >= mass - CLOSE
    assert p[distance < farthest - CLOSE].sum() < mass + CLOSE


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(1, V + 9))
def test_top_k_keeps_the_k_largest_and_ties(logits, k):
    assert np.array_equal(keep("top_k", logits, k), logits >= np.sort(logits)[:, -min(k, V), None])


@settings(max_examples=60, deadline=None)
@given(rows, fractions)
def test_top_p_keeps_the_fewest_that_reach_p(logits, p):
    check_fewest(keep("top_p", logits, p), np.exp(log_probabilities(logits)), -logits, p)


@settings(max_examples=60, deadline=None)
@given(rows, fractions)
def test_typical_keeps_the_fewest_nearest_to_the_entropy(logits, p):
    log_p = log_probabilities(logits)
    distance = np.abs(log_p + (np.exp(log_p) * -log_p).sum())
    check_fewest(keep("typical", logits, p), np.exp(log_p), distance / max(1, distance.max()), p)


@settings(max_examples=60, deadline=None)
@given(rows, fractions)
def test_min_p_is_a_fraction_of_the_highest_probability(logits, fraction):
    p = np.exp(log_probabilities(logits))
    check_bound(keep("min_p", logits, fraction), p, fraction * p.max())


@settings(max_examples=60, deadline=None)
@given(rows, st.floats(1e-5, 0.5))
def test_epsilon_and_eta_are_bounds_of_probability(logits, epsilon):
    log_p = log_probabilities(logits)
    entropy = (np.exp(log_p) * -log_p).sum()
    check_bound(keep("epsilon", logits, epsilon), np.exp(log_p), epsilon)
    check_bound(keep("eta", logits, epsilon), np.exp(log_p), min(epsilon, np.sqrt(epsilon) * np.exp(-entropy)))


@pytest.mark.parametrize("offset", [-100, 0, 30])
@pytest.mark.parametrize("k", [1, 3, 4, 299, 300, 2**31 - 1])
def test_top_k_over_several_blocks_and_rows(offset, k):
    logits = (np.random.default_rng(k % 97).normal(size=(5, 300)) * 4 + offset).astype(np.float32)
    assert np.array_equal(keep("top_k", logits, k), logits >= np.sort(logits)[:, -min(k, 300), None])


@pytest.mark.parametrize("offset", [-100, 0])
def test_top_p_over_several_blocks_and_rows(offset):
    logits = (np.random.default_rng(0).normal(size=(5, 3000)) * 3 + offset).astype(np.float32)
    kept = keep("top_p", logits, 0.95)
    for row, row_kept in zip(log_probabilities(logits), kept):
        check_fewest(row_kept, np.exp(row), -row, 0.95)
        assert row_kept.sum() == 1 + (np.cumsum(np.sort(np.exp(row))[::-1]) < 0.95).sum()


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", 1), ("top_p", 1e-3), ("min_p", 1.0), ("typical", 1e-3), ("epsilon", 0.9), ("eta", 0.9)],
)
def test_at_least_so_many_are_kept(name, value):
    logits = np.random.default_rng(1).normal(scale=20, size=(4, V)).astype(np.float32)
    assert (keep(name, logits, value).sum(-1) == 1).all()
    kept = keep(name, logits, value, at_least=3)
    assert (kept.sum(-1) == 3).all()
    if name != "typical":
        assert np.array_equal(kept, logits >= np.sort(logits)[:, -3, None])


@pytest.mark.parametrize("name", FILTERS)
def test_banned_tokens_stay_banned_and_one_alone_is_kept(name):
    logits = np.full((2, V), LOWEST, np.float32)
    logits[0, 7] = -3.0
    logits[1, :3] = 1.0
    kept = keep(name, logits, 0.9 if name != "top_k" else 3)
    np.testing.assert_array_equal(kept, logits > LOWEST)


def test_filters_accept_infinities_and_extremes():
    logits = jnp.array([[LOWEST, -jnp.inf, 0.0, 1.0], [3e38, -3e38, 0.0, -0.0]])
    assert np.array_equal(np.asarray(filters.keep_top_k(logits, 2))[0] > LOWEST, [False, False, True, True])
    assert np.array_equal(np.asarray(filters.keep_top_k(logits, 2))[1] > LOWEST, [True, False, True, True])
    assert np.array_equal(np.asarray(filters.keep_top_p(logits, 0.5))[1] > LOWEST, [True, False, False, False])

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax.data.mixture import LONGEST_CYCLE, Mixture
from gpt2_jax.errors import InputError

NAMES = "abcd"


@st.composite
def mixtures(draw):
    """A mixture of two to four sources, whose weights may change, with some left out for a while."""
    names = NAMES[: draw(st.integers(2, 4))]
    weight = st.sampled_from([0.1, 0.5, 0.7, 1.0, 3.0, 7.0])
    first = {name: draw(weight) for name in names}
    steps = sorted(draw(st.sets(st.integers(1, 300), max_size=3)))
    later = [(s, draw(st.dictionaries(st.sampled_from(names), weight, min_size=1))) for s in steps]
    return names, [(0, first), *later], draw(st.integers(1, 8)), draw(st.integers(0, 2**40))


def make(given_mixture) -> Mixture:
    names, reweighing, batch_size, seed = given_mixture
    return Mixture(names, reweighing, seed=seed, batch_size=batch_size)


@settings(deadline=None, max_examples=40)
@given(mixtures())
def test_each_source_counts_0_1_2_without_gap_or_repeat(mixture):
    sources, numbers = make(mixture).locate(np.arange(4000))
    for k in range(len(mixture[0])):
        assert numbers[sources == k].tolist() == list(range((sources == k).sum()))


@settings(deadline=None, max_examples=40)
@given(mixtures(), st.integers(0, 10**12), st.integers(1, 50))
def test_a_window_is_a_function_of_its_number_alone(mixture, start, count):
    together = make(mixture).locate(np.arange(start, start + count))
    for i in (0, count - 1):
        alone = make(mixture).locate(np.array([start + i]))
        assert [x.item() for x in alone] == [x[i].item() for x in together]
    backwards = make(mixture).locate(np.arange(start, start + count)[::-1])
    assert all((a[::-1] == b).all() for a, b in zip(backwards, together))


@settings(deadline=None, max_examples=40)
@given(mixtures(), st.integers(0, 10**9))
def test_shares_are_exact_in_every_cycle(mixture, cycle):
    names, reweighing, batch_size, _ = mixture
    step, weights = reweighing[-1]
    exact = np.array([weights.get(name, 0.0) for name in names]) / sum(weights.values())
    made = make(mixture)
    length = made._phases[-1].cycle
    assert LONGEST_CYCLE / 2 < length <= LONGEST_CYCLE
    first = step * batch_size + cycle * length
    counts = np.bincount(made.locate(np.arange(first, first + length))[0], minlength=len(names))
    assert (np.abs(counts - exact * length) < 1).all()


def test_simple_weights_are_met_exactly():
    for weights, length, counts in (
        ({"a": 3.0, "b": 1.0}, 1024, [768, 256]),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, 1023, [341, 341, 341]),
        ({"a": 0.5, "b": 0.3, "c": 0.2}, 1020, [510, 306, 204]),
    ):
        sources, _ = Mixture(list(weights), [(0, weights)], seed=0, batch_size=8).locate(np.arange(length))
        assert np.bincount(sources).tolist() == counts


def test_weights_that_do_not_divide_take_the_largest_remainders():
    weights = {"a": 0.12345, "b": 0.54321, "c": 0.98765}
    sources, _ = Mixture("abc", [(0, weights)], seed=0, batch_size=8).locate(np.arange(1024))
    exact = np.array(list(weights.values())) / sum(weights.values()) * 1024
    assert np.bincount(sources).tolist() == [77, 336, 611]
    assert np.round(exact, 2).tolist() == [76.41, 336.24, 611.34]


def test_weights_change_at_their_step():
    reweighing = [(0, {"a": 1.0, "b": 1.0}), (10, {"b": 1.0}), (20, {"a": 1.0})]
    sources, numbers = Mixture("ab", reweighing, seed=0, batch_size=6).locate(np.arange(200))
    assert set(sources[:60]) == {0, 1}
    assert (sources[60:120] == 1).all() and (sources[120:] == 0).all()
    assert numbers[120] == (sources[:60] == 0).sum()


def test_the_order_differs_by_seed_and_by_cycle():
    order = lambda seed, cycle: (
        Mixture("ab", [(0, {"a": 1.0, "b": 1.0})], seed=seed, batch_size=1)
        .locate(np.arange(1024 * cycle, 1024 * cycle + 1024))[0]
        .tolist()
    )
    assert order(0, 0) != order(1, 0) and order(0, 0) != order(0, 1)


def test_the_order_is_that_of_earlier_versions():
    sources, numbers = Mixture("abc", [(0, {"a": 3.0, "b": 1.0, "c": 1.0})], seed=7, batch_size=4).locate(
        np.arange(5000, 5012)
    )
    assert (sources.tolist(), numbers.tolist()) == (
        [0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 1],
        [2998, 2999, 3000, 3001, 3002, 3003, 3004, 1000, 1002, 3005, 3006, 1003],
    )


def test_a_weight_that_is_never_dealt():
    expected = (
        "the weight of b is 0.0001 of all, less than one window in 1024; raise it in --config.data.source or"
        " --config.data.reweigh to 0.00098 or more, or leave the source out"
    )
    with pytest.raises(InputError, match=re.escape(expected)):
        Mixture("ab", [(0, {"a": 1.0, "b": 0.0001})], seed=0, batch_size=8)

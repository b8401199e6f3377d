import dataclasses

import jax
import numpy as np
import pytest

from gpt2_jax import InputError, LanguageModel
from gpt2_jax.evaluation.logprobs import spread
from gpt2_jax.evaluation.scoring import score
from gpt2_jax.mixing import mix
from gpt2_jax.model import GPT2


def expected(lm, naive, context, continuation):
    """(logprobs, greedy) of a pair, by its definition."""
    window = (list(context) or [lm.tokenizer.end_of_text])[-(lm.config.n_positions + 1 - len(continuation)) :]
    table = naive([*window, *continuation][:-1])[len(window) - 1 :]
    places = np.arange(len(continuation))
    return table[places, continuation], bool((table.argmax(-1) == continuation).all())


def assert_same(results, wanted):
    for result, (logprobs, greedy) in zip(results, wanted, strict=True):
        np.testing.assert_allclose(result.logprobs, logprobs, atol=2e-5, rtol=0)
        assert result.greedy is greedy and result.logprobs.dtype == np.float32


def test_scores_are_those_of_the_model_alone(lm, naive, random_pairs):
    pairs = random_pairs(40)
    wanted = [expected(lm, naive, *pair) for pair in pairs]
    assert_same(score(lm, pairs), wanted)
    assert_same(score(lm, pairs[:3], batch_size=3), wanted[:3])
    assert np.isclose(score(lm, pairs[:1])[0].total, wanted[0][0].sum(), atol=1e-4)


def test_what_the_model_would_say_is_greedy(lm, naive):
    context, ids = [5, 6, 7], []
    for _ in range(8):
        ids.append(int(naive([*context, *ids])[-1].argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % lm.config.vocab_size]
    first, second = score(lm, [(context, ids), (context, other)])
    assert first.greedy and not second.greedy


def test_a_batch_changes_nothing_but_rounding(lm, random_pairs):
    pairs = random_pairs(19, seed=1)
    alone = [score(lm, [pair])[0] for pair in pairs]
    for batch_size in (1, 5, 64):
        together = score(lm, pairs, batch_size=batch_size)
        assert_same(together, [(one.logprobs, one.greedy) for one in alone])


def test_other_data_compile_nothing_new(lm, random_pairs, compiled):
    score(lm, random_pairs(64, seed=2))
    before = compiled()
    score(lm, random_pairs(64, seed=3))
    assert compiled() == before


def test_eight_devices_give_the_same(lm, random_pairs):
    pairs = random_pairs(21, seed=4)
    wanted = [(one.logprobs, one.greedy) for one in score(lm, pairs)]
    everywhere = spread(lm)
    assert len(jax.tree.leaves(everywhere.model)[0].sharding.device_set) == 8
    assert_same(score(everywhere, pairs, batch_size=3), wanted)
    assert_same(score(spread(lm, 1), pairs), wanted)


def test_an_untied_bfloat16_model_of_another_engine(lm, tiny):
    config = dataclasses.replace(tiny, tie_word_embeddings=False, dtype="bfloat16", attention="splash", n_layer=1)
    ids = np.arange(2, 12)

    @jax.jit
    def own(key):
        logits = GPT2(dataclasses.replace(config, attention="xla"), key)(ids[None, :-1])
        return jax.nn.log_softmax(logits[0])[np.arange(9), ids[1:]]

    other = LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(1)), lm.tokenizer)
    logprobs = score(other, [(ids[:1], ids[1:])])[0].logprobs
    np.testing.assert_allclose(logprobs, own(jax.random.key(1)), atol=0.03)


def test_a_mix_of_models(lm, random_pairs):
    pairs = random_pairs(2, seed=5)
    mixed = mix(lm, expert=lm, alpha=1.0)  # twice the logits
    for (context, continuation), scored in zip(pairs, score(mixed, pairs)):
        window = (context or [lm.tokenizer.end_of_text])[-(33 - len(continuation)) :]
        logits = np.asarray(lm.model(np.array([[*window, *continuation][:-1]]))[0, len(window) - 1 :], np.float64)
        wanted = jax.nn.log_softmax(2 * logits)[np.arange(len(continuation)), continuation]
        np.testing.assert_allclose(scored.logprobs, wanted, atol=5e-5)


def test_progress_is_told(lm, random_pairs):
    told = []
    score(lm, random_pairs(11), batch_size=4, progress=told.append)
    assert told == [4, 8, 11]
    assert score(lm, []) == []


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (([1], []), "pair 1 has an empty continuation; there is nothing to score in it"),
        (([1], [2] * 33), "pair 1 has a continuation of 33 tokens, and the model's context is 32"),
        (([1], [290]), "pair 1 has token id 290 in its continuation; ids must be from 0 to 2"),
        (([-1], [2]), "pair 1 has token id -1 in its context; ids must be from 0 to"),
        (("text", [2]), "pair 1 has a context that is <U4[]; it must be token ids"),
        (([[1], [2]], [2]), r"pair 1 has a context that is int64[2, 1]; it must be token ids"),
        (([1.5], [2]), r"pair 1 has a context that is float64[1]; it must be token ids"),
        ([1, 2, 3], "pair 1 is [1, 2, 3]; it must be (context ids, continuation ids)"),
        (7, "pair 1 is 7; it must be (context ids, continuation ids)"),
    ],
)
def test_pairs_that_are_none_are_refused(lm, pair, message):
    with pytest.raises(InputError) as caught:
        score(lm, [([1], [2]), pair])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("devices", [0, 9])
def test_devices_that_are_not_there_are_refused(lm, devices):
    with pytest.raises(InputError, match=f"devices is {devices}; it must be 1 to 8, as many as there are"):
        spread(lm, devices)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0])
def test_a_batch_size_below_one_is_refused(lm, batch_size):
    with pytest.raises(InputError, match=r"batch_size is .*; it must be an integer of at least 1"):
        score(lm, [([1], [2])], batch_size=batch_size)

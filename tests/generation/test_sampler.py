import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.config import MeshConfig
from gpt2_jax.generation import sampler
from gpt2_jax.generation.sampling import Sampling
from gpt2_jax.model import unstack
from gpt2_jax.sharding import make_mesh, tree_shardings

PROMPTS = [[1, 2, 3], [5] * 18, [7]]
forward = jax.jit(lambda model, tokens: model(tokens))


@pytest.fixture(scope="module")
def model(tiny_model):
    return unstack(tiny_model)


def states(model, prompts=PROMPTS, n=10, *, end=(), seeds=None, chunk=None, alternatives=None, negative=(), **rules):
    """The sampler's states; settings of `Sampling` and fields of `Rules` by name."""
    of_rules = {f.name for f in dataclasses.fields(sampler.Rules)}
    settings = {k: rules.pop(k) for k in set(rules) - of_rules}
    start = sampler.start_state(
        prompts, seeds or [(0, 0)] * len(prompts), n, negative_prompts=negative, alternatives=alternatives
    )
    ends = np.full(4, -1, np.int32)
    ends[: len(end)] = end
    rules = sampler.Rules(sampling=Sampling(**settings), end_tokens=ends, limit=np.int32(n), **rules)
    return sampler.generate(model, start, rules, chunk=chunk)


def new_tokens(state):
    """The new tokens of each row, a list of lists."""
    tokens, starts, lengths = state.history.tokens, state.history.prompt_lengths, state.history.lengths
    return [np.asarray(tokens)[i, starts[i] : lengths[i]].tolist() for i in range(len(state.ended))]


def run(*arguments, **options):
    *_, state = states(*arguments, **options)
    return new_tokens(state)


def greedy_without_cache(model, prompt, n):
    """A row of the sampler, by the whole forward pass each time; a full context goes on from its later half."""
    context, row, window = model.config.n_positions, list(prompt), list(prompt)
    for _ in range(n):
        if len(window) > context:
            window = window[-(context // 2) :]
        padded = np.array([window + [0] * (context - len(window))])
        row.append(int(forward(model, padded)[0, len(window) - 1].argmax()))
        window.append(row[-1])
    return row[len(prompt) :]


def test_cached_equals_uncached_token_for_token(model):
    for prompt, row in zip(PROMPTS, run(model, temperature=0)):
        assert row == greedy_without_cache(model, prompt, 10)


def test_the_whole_context_can_be_filled(model):
    n = model.config.n_positions - 2
    assert run(model, [[3, 1, 4]], n=n, temperature=0)[0] == greedy_without_cache(model, [3, 1, 4], n)


def test_beyond_the_context_a_row_slides_as_it_does_alone(model):
    """Rows that fill the context at different times, one of them by its prompt, some of them twice."""
    prompts = [[1, 2, 3], [5] * 30, [8, 9] * 20]
    for prompt, row in zip(prompts, run(model, prompts, n=60, temperature=0)):
        assert row == greedy_without_cache(model, prompt, 60)
    together = run(model, prompts, n=40, seeds=[(1, 0), (2, 0), (3, 0)], top_k=30)
    assert together == [run(model, [p], n=40, seeds=[(i, 0)], top_k=30)[0] for i, p in enumerate(prompts, 1)]


def test_streaming_in_any_chunks_gives_the_same_tokens(model):
    whole = run(model, n=40, temperature=0.9, top_k=20, top_p=0.9)
    for chunk in (1, 4):
        items = [new_tokens(state) for state in states(model, n=40, temperature=0.9, top_k=20, top_p=0.9, chunk=chunk)]
        assert items[-1] == whole and len(items) == 40 // chunk
        assert all(len(row) == chunk * i for i, rows in enumerate(items, 1) for row in rows)


def test_a_row_is_the_same_alone_and_in_any_batch(model):
    seeds = [(5, 0), (5, 1), (6, 0)]
    together = run(model, seeds=seeds)
    assert together == [run(model, [p], seeds=[s])[0] for p, s in zip(PROMPTS, seeds)]
    assert together[::-1] == run(model, PROMPTS[::-1], seeds=seeds[::-1])


def test_a_row_is_the_same_on_eight_devices(model, tiny_model):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    spread = unstack(jax.device_put(tiny_model, tree_shardings(tiny_model, mesh)))
    assert run(spread, top_k=40) == run(model, top_k=40)


def test_seeds_and_numbers_differ_and_repeat(model):
    rows = run(model, [[1]] * 4, n=12, seeds=[(1, 0), (1, 1), (2, 0), (1, 0)])
    assert rows[0] == rows[3] and len({tuple(row) for row in rows}) == 3
    assert rows == run(model, [[1]] * 4, n=12, seeds=[(1, 0), (1, 1), (2, 0), (1, 0)])


def test_rows_stop_at_any_end_token_and_the_loop_when_all_have(model):
    free = run(model, temperature=0)
    ends = [free[0][4], free[1][7]]
    rows = run(model, temperature=0, end=ends)
    for stopped, row in zip(rows, free):
        first = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
        assert stopped == row[: first + 1]
    *_, state = states(model, PROMPTS[:1], temperature=0, end=ends)
    assert int(state.count) == len(rows[0]) and state.ended.tolist() == [sampler.AT_END_TOKEN]


def test_log_probabilities_are_the_models_own(model):
    *_, state = states(model, n=6, alternatives=3, temperature=0.5, top_k=2, repetition_penalty=1.5)
    for i, (prompt, row) in enumerate(zip(PROMPTS, new_tokens(state))):
        text = prompt + row
        logits = forward(model, np.array([text + [0] * (32 - len(text))]))[0, len(prompt) - 1 : len(text) - 1]
        expected = jax.nn.log_softmax(logits)
        np.testing.assert_allclose(state.scores.chosen[i, :6], expected[np.arange(6), np.array(row)], atol=1e-5)
        top, tokens = jax.lax.top_k(expected, 3)
        np.testing.assert_allclose(state.scores.top[i, :6], top, atol=1e-5)
        np.testing.assert_array_equal(state.scores.top_tokens[i, :6], tokens)


def test_guidance_leads_away_from_the_negative_prompt(model):
    negative = [[4, 4]] * 3
    guided = run(model, n=5, negative=negative, guidance_scale=np.float32(3), temperature=0)
    for prompt, row in zip(PROMPTS, guided):
        yes, no = list(prompt), [4, 4]
        for token in row:
            log_p = lambda text: jax.nn.log_softmax(
                forward(model, np.array([text + [0] * (32 - len(text))]))[0, len(text) - 1]
            )
            assert token == int((log_p(no) + 3 * (log_p(yes) - log_p(no))).argmax())
            yes, no = [*yes, token], [*no, token]
    assert run(model, negative=negative, guidance_scale=np.float32(1), temperature=0) == run(model, temperature=0)


def test_other_values_and_lengths_compile_nothing_anew(model):
    run(model, [[1, 2]], n=5, temperature=0)
    before = sampler.fill._cache_size(), sampler.advance._cache_size()
    run(model, [[1, 2, 3, 4, 5]], n=7, temperature=1.0, top_p=0.5, end=[9])
    run(model, [[1, 2, 3]], n=16, top_k=3, min_p=0.1, typical_p=0.9, repetition_penalty=1.2, no_repeat_ngram_size=2)
    run(model, [[1]], n=16, presence_penalty=1.0, frequency_penalty=1, epsilon_cutoff=0.1, eta_cutoff=0.1)
    assert (sampler.fill._cache_size(), sampler.advance._cache_size()) == before


@pytest.mark.parametrize(("length", "expected"), [(1, 16), (16, 16), (17, 32), (33, 64), (900, 1000)])
def test_buckets(length, expected):
    assert sampler.bucket(length, 1000) == expected


def test_guide_keeps_what_is_banned_finite():
    lowest = jnp.finfo(jnp.float32).min
    guided = sampler.guide(jnp.array([[0.0, lowest]]), jnp.array([[1.0, lowest]]), 5.0)
    assert np.isfinite(guided).all() and guided[0, 1] == lowest

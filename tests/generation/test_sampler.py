import jax
import numpy as np
import pytest

from gpt2_jax.generation import sampler
from gpt2_jax.generation.sampling import Sampling
from gpt2_jax.model import unstack

PROMPTS = [[1, 2, 3], [5] * 18, [7]]
NEVER = 1_000  # no id is this one, so nothing stops early
forward = jax.jit(lambda model, tokens: model(tokens))


@pytest.fixture(scope="module")
def model(tiny_model):
    return unstack(tiny_model)


def run(model, prompts=PROMPTS, n=10, end_of_text=NEVER, seed=0, chunk=None, **settings):
    """New tokens [B, <= n]."""
    items = list(
        sampler.generate(
            model,
            prompts,
            max_new_tokens=n,
            sampling=Sampling(**settings),
            seed=seed,
            end_of_text=end_of_text,
            chunk=chunk,
        )
    )
    return np.concatenate([tokens for tokens, _ in items], axis=1)


def greedy_without_cache(model, prompt, n):
    row = list(prompt)
    for _ in range(n):
        padded = np.array([row + [0] * (model.config.n_positions - len(row))])
        row.append(int(forward(model, padded)[0, len(row) - 1].argmax()))
    return row[len(prompt) :]


def test_cached_equals_uncached_token_for_token(model):
    tokens = run(model, temperature=0)
    for prompt, row in zip(PROMPTS, tokens):
        assert row.tolist() == greedy_without_cache(model, prompt, 10)


def test_the_whole_context_can_be_filled(model):
    prompt = [3, 1, 4]
    row = run(model, [prompt], n=model.config.n_positions - 3, temperature=0)[0]
    assert row.tolist() == greedy_without_cache(model, prompt, model.config.n_positions - 3)


def test_streaming_in_any_chunks_gives_the_same_tokens(model):
    whole = run(model, temperature=0.9, top_k=20, top_p=0.9, seed=3)
    for chunk in (1, 4):
        np.testing.assert_array_equal(run(model, temperature=0.9, top_k=20, top_p=0.9, seed=3, chunk=chunk), whole)


def test_a_row_does_not_depend_on_the_rows_beside_it(model):
    together, alone = run(model, seed=5), run(model, PROMPTS[:1], seed=5)
    np.testing.assert_array_equal(together[:1], alone)


def test_seeds_and_rows_differ_and_repeat(model):
    tokens = run(model, [[1]] * 3, n=12, seed=1)
    assert len({tuple(row) for row in tokens.tolist()}) == 3
    np.testing.assert_array_equal(tokens, run(model, [[1]] * 3, n=12, seed=1))
    assert not np.array_equal(tokens, run(model, [[1]] * 3, n=12, seed=2))


def test_rows_stop_at_end_of_text_and_the_loop_when_all_have(model):
    free = run(model, temperature=0)
    end = int(free[0, 4])
    tokens = run(model, temperature=0, end_of_text=end)
    for stopped, row in zip(tokens.tolist(), free.tolist()):
        length = row.index(end) + 1 if end in row else len(row)
        assert stopped[:length] == row[:length] and set(stopped[length:]) <= {end}
    alone = run(model, PROMPTS[:1], temperature=0, end_of_text=end)
    assert alone.shape[1] == free[0].tolist().index(end) + 1


def test_lengths_share_compilations(model):
    start, advance = sampler._compiled(sampler.bucket(5, 32), NEVER)
    run(model, [[1, 2]], n=5, temperature=0)
    before = start._cache_size(), advance._cache_size()
    run(model, [[1, 2, 3, 4, 5]], n=7, temperature=1.0, top_p=0.5)
    assert (start._cache_size(), advance._cache_size()) == before


@pytest.mark.parametrize(("length", "expected"), [(1, 16), (16, 16), (17, 32), (33, 64), (900, 1000)])
def test_buckets(length, expected):
    assert sampler.bucket(length, 1000) == expected

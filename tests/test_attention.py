import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax import attention
from gpt2_jax.attention import KVCache, attend, attend_cached, attend_causally


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def qkv(T: int) -> list[np.ndarray]:
    """[2, 3, T, 4] each."""
    return list(random(3, 2, 3, T, 4))


def by_a_loop(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    y = np.zeros_like(q)
    for b, h, t in np.ndindex(q.shape[:3]):
        weights = np.exp(scale * k[b, h, : t + 1] @ q[b, h, t])
        y[b, h, t] = weights @ v[b, h, : t + 1] / weights.sum()
    return y


def test_attention_matches_a_loop():
    q, k, v = qkv(5)
    got = attend(q, k, v, 0.5, np.tril(np.ones((5, 5), bool)))
    np.testing.assert_allclose(got, by_a_loop(q, k, v, 0.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("T", [1, 4, 5, 11])
def test_causal_attention_in_blocks_matches_a_loop(T, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    q, k, v = qkv(T)
    np.testing.assert_allclose(attend_causally(q, k, v, 0.5), by_a_loop(q, k, v, 0.5), rtol=1e-4, atol=1e-5)


def test_blocks_change_neither_a_mask_nor_dropout():
    q, k, v = qkv(11)
    segments = np.array([[0] * 3 + [1] * 8, [0] * 6 + [1] * 5])
    mask = (segments[:, :, None] == segments[:, None, :])[:, None]
    keep = random(2, 3, 11, 11) > -1
    run = lambda block: attend_causally(q, k, v, 0.5, mask, keep=keep, rate=0.2, block=block)
    np.testing.assert_allclose(run(4), run(11), rtol=1e-5, atol=1e-6)
    first = slice(None), slice(None), slice(0, 1)  # a query that sees itself alone
    np.testing.assert_allclose(run(4)[first], np.where(keep[first][..., :1], v[first] / 0.8, 0), rtol=1e-5)


def test_attention_over_a_cache_sees_what_its_rows_masks_allow():
    q, k, v = qkv(6)
    expected = by_a_loop(q, k, v, 0.5)
    cache = KVCache.of(k[:, :, :4], v[:, :, :4], slots=8).write(k[:, :, 4:], v[:, :, 4:], 4)
    for row, length in enumerate((5, 6)):
        lengths = np.array([[5], [6]])
        y = attend_cached(q[:, :, length - 1 : length], cache, 0.5, np.arange(8) < lengths[:, :, None])
        np.testing.assert_allclose(y[row, :, 0], expected[row, :, length - 1], rtol=1e-4, atol=1e-5)


def test_cache_writes_at_a_slot():
    zeros = jnp.zeros((1, 2, 1, 3))
    cache = KVCache.of(zeros, zeros, slots=6).write(jnp.ones((1, 2, 2, 3)), 2 * jnp.ones((1, 2, 2, 3)), 3)
    assert cache.slots == 6 and cache.keys.shape == (2, 6, 3)
    np.testing.assert_array_equal(cache.keys[0, :, 0], [0, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(cache.values[1, :, 2], [0, 0, 0, 2, 2, 0])


def test_cache_of_selected_rows():
    k, v = random(3, 2, 5, 4), random(3, 2, 5, 4)
    rows = np.array([2, 0, 0, 1])
    expected, got = KVCache.of(k[rows], v[rows], 6), KVCache.of(k, v, 6).select(rows, batch=3)
    np.testing.assert_array_equal(got.keys, expected.keys)
    np.testing.assert_array_equal(got.values, expected.values)

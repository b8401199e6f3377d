"""The step of one token: it agrees with the whole forward pass, and writes its cache in place."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.generation.decoding import Decoding, last_state, prefill, step
from gpt2_jax.model import GPT2, unstack


@pytest.fixture(scope="module")
def model(tiny_model: GPT2) -> GPT2:
    return unstack(tiny_model)


def test_steps_give_the_logits_of_the_whole_text_for_rows_of_any_lengths(model, tiny_model):
    rng = np.random.default_rng(0)
    texts, lengths = rng.integers(0, 101, (3, 16)), np.array([3, 8, 5], np.int32)
    full = tiny_model(texts)  # [B, T, V]
    prompts = np.where(np.arange(8) < lengths[:, None], texts[:, :8], 77).astype(np.int32)
    x, decoding = prefill(model, prompts, lengths, 8)
    x = last_state(x, lengths)
    rows = np.arange(3)
    one_token = jax.jit(step)
    for n in range(8):
        np.testing.assert_allclose(model.head(x)[:, :101], full[rows, lengths + n - 1], rtol=1e-5, atol=1e-5)
        x, decoding = one_token(model, texts[rows, lengths + n].astype(np.int32), decoding)
    assert int(decoding.count) == 8


def test_selected_rows_go_on_as_themselves(model):
    prompts = np.random.default_rng(0).integers(0, 101, (3, 8)).astype(np.int32)
    lengths, rows = np.array([3, 8, 5], np.int32), np.array([2, 0, 0, 1])
    tokens = np.array([9, 8, 7], np.int32)
    decoding = prefill(model, prompts, lengths, 4)[1]
    expected = step(model, tokens, decoding)[0][rows]
    np.testing.assert_allclose(step(model, tokens[rows], decoding.select(rows))[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("upcast", [False, True])
def test_bfloat16_steps_agree_with_bfloat16_whole(tiny, tokens, upcast):
    config = dataclasses.replace(tiny, dtype="bfloat16", reorder_and_upcast_attn=upcast)
    model = unstack(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)))
    full = model(tokens)
    x, decoding = prefill(model, jnp.asarray(tokens[:, :15]), jnp.full(2, 15), 1)
    assert decoding.cache[0].keys.dtype == jnp.bfloat16
    x, _ = step(model, jnp.asarray(tokens[:, 15]), decoding)
    np.testing.assert_allclose(model.head(x)[:, :101], full[:, 15], atol=0.05 * float(jnp.abs(full).max()))


def decode(model: GPT2, token: jax.Array, decoding: Decoding, steps: jax.Array) -> tuple[jax.Array, Decoding]:
    def turn(_, carry):
        x, decoding = step(model, *carry)
        return jnp.argmax(model.head(x), axis=-1).astype(jnp.int32), decoding

    return jax.lax.fori_loop(0, steps, turn, (token, decoding))


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_the_loop_copies_no_cache_and_no_weight(model, batch):
    """In the optimized program: nothing of a cache's or weight's shape is copied or transposed in the loop."""
    prompts, lengths = jnp.ones((batch, 8), jnp.int32), jnp.full(batch, 8)
    decoding = jax.eval_shape(functools.partial(prefill, capacity=15), model, prompts, lengths)[1]
    optimized = {"xla_backend_optimization_level": 3}  # the tests' environment turns optimization off
    lowered = jax.jit(decode, donate_argnames="decoding").lower(model, lengths, decoding, 8)
    program = lowered.compile(optimized).as_text()

    H, K, C, V = 4, 8, 32, 128
    shapes = {(batch * H, 23, K), (batch, H, 23, K), (H, 23, K), (3, C, C), (3 * C, C), (C, C), (4 * C, C), (V, C)}
    inside = [part for part in program.split("\n\n") if not part.startswith("ENTRY")]
    assert "body=" in program and len(inside) > 10
    copied = [
        shape
        for computation in inside
        for shape in re.findall(r"= f32\[([\d,]+)\]\S* (?:copy|transpose)\(", computation)
        if tuple(map(int, shape.split(","))) in shapes
    ]
    assert not copied
    assert "input_output_alias" in program  # the caches given are those returned

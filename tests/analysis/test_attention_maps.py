import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gpt2_jax
from gpt2_jax import InputError
from gpt2_jax.analysis import attention_maps
from gpt2_jax.analysis.attention_maps import (
    STATISTICS,
    attention_of,
    attention_weights,
    head_statistics,
    repeated_tokens,
    statistics_of_heads,
)
from gpt2_jax.layers import LayerNorm
from gpt2_jax.tokenizer_training import train_characters
from gpt2_jax.training.optimizer import make_schedule
from gpt2_jax.training.options import OptimizerConfig
from gpt2_jax.training.step import init_state, make_train_step

TEXT = "to be or not to be\nto see"


def naive_attention(model, tokens):
    """float64 [L, H, T, S] of a stacked model, query by query, from its parameters alone."""
    config = model.config
    get = lambda x: np.asarray(x[...], np.float64)

    def norm(layer: LayerNorm, x, i):
        scale, bias = (get(getattr(layer, name))[i] for name in ("scale", "bias"))
        mean, deviation = x.mean(-1, keepdims=True), np.sqrt(x.var(-1, keepdims=True) + config.layer_norm_epsilon)
        return (x - mean) / deviation * scale + bias

    gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    T, H, K = len(tokens), config.n_head, config.head_size
    x = get(model.wte.embedding)[tokens] + get(model.wpe.embedding)[:T]
    found = np.zeros((config.n_layer, H, T, T))
    for i in range(config.n_layer):
        linear = lambda layer, x, i=i: np.tensordot(x, get(layer.kernel)[i], 1) + get(layer.bias)[i]
        qkv = linear(model.h.attn.c_attn, norm(model.h.ln_1, x, i)).reshape(T, 3, H, K)
        y = np.zeros((T, H, K))
        for h in range(H):
            for t in range(T):
                scores = qkv[: t + 1, 1, h] @ qkv[t, 0, h]
                scores /= np.sqrt(K) if config.scale_attn_weights else 1
                scores /= i + 1 if config.scale_attn_by_inverse_layer_idx else 1
                weights = np.exp(scores - scores.max())
                found[i, h, t, : t + 1] = weights / weights.sum()
                y[t, h] = found[i, h, t, : t + 1] @ qkv[: t + 1, 2, h]
        x = x + linear(model.h.attn.c_proj, y.reshape(T, -1))
        x = x + linear(model.h.mlp.c_proj, gelu(linear(model.h.mlp.c_fc, norm(model.h.ln_2, x, i))))
    return found


VARIANTS = {
    "plain": {},
    "by layer": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    "unscaled, untied, unpadded": {"scale_attn_weights": False, "tie_word_embeddings": False, "vocab_multiple": 1},
    "of training": {"attn_pdrop": 0.1, "resid_pdrop": 0.1, "attention": "splash", "remat": "full", "scan_unroll": 3},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_weights_are_those_of_a_naive_attention_stacked_or_not(tiny_lm_of, changes):
    stacked, lm = tiny_lm_of(**changes)
    tokens = lm.tokenizer.encode(TEXT)
    wanted = naive_attention(stacked, tokens)
    for layer in range(3):
        found = attention_of(lm, TEXT, layer)
        assert found.layer == layer and found.tokens.tolist() == tokens and "".join(found.labels)[:5] == "to␣be"
        assert found.weights.dtype == np.float32
        np.testing.assert_allclose(found.weights, wanted[layer], atol=1e-5)
        np.testing.assert_allclose(attention_weights(stacked, np.array(tokens), layer), wanted[layer], atol=1e-5)
    assert np.abs(wanted[1] - wanted[0]).max() > 0.1  # layers differ, so that the wrong one would be seen
    assert attention_of(lm, TEXT, -1).layer == 2


def test_bfloat16_is_near(tiny_lm_of, tiny_lm):
    stacked, lm = tiny_lm_of(dtype="bfloat16")
    wanted = naive_attention(stacked, lm.tokenizer.encode(TEXT))
    np.testing.assert_allclose(attention_of(lm, TEXT, 0).weights, wanted[0], atol=0.03)


def test_what_goes_on_to_the_next_layer_is_that_of_the_engine():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 2, 24, 8))
    y, _ = attention_maps.attend_openly(q, k, v, jnp.float32(0.3), upcast=False)
    np.testing.assert_allclose(y, gpt2_jax.attention.attend_causally(q, k, v, 0.3), atol=2e-6)


@pytest.mark.parametrize("text", ["ab", TEXT, "aabaab ab\n" * 3])
def test_statistics_are_those_of_the_definitions(tiny_lm_of, text):
    stacked, lm = tiny_lm_of()
    tokens = lm.tokenizer.encode(text)
    T, weights = len(tokens), naive_attention(stacked, tokens)
    queries = range(1, T)
    mean = lambda of_query, queries=queries: np.mean([of_query(t) for t in queries], axis=0)
    entropy = lambda p: -(p * np.log(np.where(p > 0, p, 1))).sum(-1)
    after = {t: [s + 1 for s in range(t - 1) if tokens[s] == tokens[t]] for t in queries}
    repeated = [t for t in queries if after[t]]
    wanted = {
        "distance": mean(lambda t: sum(weights[:, :, t, s] * (t - s) for s in range(t + 1))),
        "entropy": mean(lambda t: entropy(weights[:, :, t, : t + 1])),
        "previous_token": mean(lambda t: weights[:, :, t, t - 1]),
        "first_token": mean(lambda t: weights[:, :, t, 0]),
    }
    found = head_statistics(lm, text, induction_of_text=bool(repeated))
    for name, value in wanted.items():
        np.testing.assert_allclose(getattr(found, name), value, atol=1e-4, err_msg=name)
        assert getattr(found, name).shape == (3, 4) and getattr(found, name).dtype == np.float32
    assert found.tokens == T
    if repeated:
        induction = mean(lambda t: weights[:, :, t, after[t]].sum(-1), repeated)
        np.testing.assert_allclose(found.induction, induction, atol=1e-5)
    for name, value in statistics_of_heads(stacked, np.array(tokens)).items():
        if name != "induction":
            np.testing.assert_allclose(value, getattr(found, name), atol=1e-6)


def test_a_head_that_copies_what_came_after_scores_one():
    tokens = np.array([9, *[1, 2, 3, 4] * 3, 0, 0, 0], np.int32)
    weights = np.zeros((1, 16, 16), np.float32)
    weights[0, np.arange(16), [0, *np.maximum(0, np.arange(1, 16) - 3)]] = 1
    scores = dict(zip(STATISTICS, attention_maps._statistics(jnp.array(weights), jnp.array(tokens), 13)[:, 0].tolist()))
    assert scores["induction"] == 1 and scores["distance"] == pytest.approx((1 + 2 + 3 * 10) / 12)
    assert scores["entropy"] == 0 and scores["first_token"] == pytest.approx(3 / 12)


def test_random_tokens_are_repeated_as_in_the_paper(tiny_lm):
    tokenizer = tiny_lm.tokenizer
    tokens = repeated_tokens(tokenizer, 1024, 101)
    assert len(tokens) == 101 and tokens[0] == tokenizer.end_of_text not in tokens[1:]
    assert len(set(tokens[1:26].tolist())) == 25 and np.array_equal(tokens[1:], np.tile(tokens[1:26], 4))
    assert len(repeated_tokens(tokenizer, 32, 101)) == 29  # 7 of them
    assert len(repeated_tokens(train_characters(["abc"]), 32, 4)) == 13
    random = statistics_of_heads(tiny_lm.model, repeated_tokens(tokenizer, 32, 101))["induction"]
    np.testing.assert_array_equal(head_statistics(tiny_lm, "abc").induction, random)


def test_other_texts_and_layers_compile_nothing(tiny_lm):
    tokens = [tiny_lm.tokenizer.encode(text) for text in ("a", TEXT)]
    attention_of(tiny_lm, tokens[1], 0), head_statistics(tiny_lm, tokens[1])
    before = attention_maps._layer._cache_size()
    attention_of(tiny_lm, tokens[1][:20], 2), head_statistics(tiny_lm, tokens[1][:17])
    assert attention_maps._layer._cache_size() == before
    assert attention_of(tiny_lm, tokens[0], 1).weights.tolist() == [[[1.0]]] * 4


def test_training_compiles_the_same_program(tiny, tiny_lm):
    tx, schedule = optax.sgd(0.1), make_schedule(OptimizerConfig(), 10)
    state = jax.eval_shape(lambda: init_state(tiny, tx, 0))
    batch = {"tokens": np.zeros((2, 17), np.int32), "mask": np.ones((2, 16), bool)}
    lower = lambda: jax.jit(make_train_step(tx, schedule)).lower(state, batch).as_text()
    before = lower()
    attention_of(tiny_lm, TEXT, 2), head_statistics(tiny_lm, TEXT)
    assert lower() == before


def test_what_has_no_attention_to_show(tiny_lm):
    with pytest.raises(InputError, match="the text has 0 tokens; to show its attention there must be from 1 to 32"):
        attention_of(tiny_lm, "", 0)
    with pytest.raises(InputError, match=r"the text has 33 tokens; .* from 1 to 32, the model's context: give a part"):
        attention_of(tiny_lm, "a" * 33, 0)
    with pytest.raises(InputError, match=r"the text has 1 tokens; .* from 2 to 32, the model's context: give more"):
        head_statistics(tiny_lm, "a")
    for layer in (3, -4, 1.0):
        with pytest.raises(InputError, match=f"layer is {layer}; it must be from 0 to 2, or -1, the last, to -3"):
            attention_of(tiny_lm, "ab", layer)
    with pytest.raises(InputError, match="layer is 3; it must be from 0 to 2"):
        attention_weights(tiny_lm.model, np.arange(3), 3)
    with pytest.raises(InputError, match="none of the text's 3 tokens comes twice with another after it, so there is"):
        head_statistics(tiny_lm, "abc", induction_of_text=True)
    with pytest.raises(InputError, match="n_positions is 8; it must be at least 9, and the vocabulary at least 2, for"):
        repeated_tokens(tiny_lm.tokenizer, 8, 101)
    mixed = gpt2_jax.mix(tiny_lm, expert=tiny_lm)
    for look in (lambda: attention_of(mixed, "ab", 0), lambda: head_statistics(mixed, "ab")):
        with pytest.raises(InputError, match="a mix of models has no attention of its own; look at one of the models"):
            look()

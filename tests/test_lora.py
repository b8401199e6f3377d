import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpt2_jax
from gpt2_jax import LanguageModel, lora, weights
from gpt2_jax.errors import InputError
from gpt2_jax.layers import Adapter, Linear
from gpt2_jax.model import GPT2, num_parameters, parameter_names, unstack
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_characters
from gpt2_jax.training.finetune_options import ADAPTERS, FinetuneConfig, LoraConfig
from gpt2_jax.training.selection import join, split
from gpt2_jax.training.step import sum_of_losses

ALL = LoraConfig(rank=2, alpha=3.0, targets=".")
logits_of = jax.jit(lambda model, tokens, key=None: model(tokens, key=key))


def moved(model: GPT2, pattern: str = ADAPTERS, seed: int = 5) -> GPT2:
    """The model as if it had been trained: noise on the parameters of these names."""
    rng = np.random.default_rng(seed)
    noise = lambda name, x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32) if re.search(pattern, name) else x
    return jax.tree.map(noise, parameter_names(model), model)


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def attached(tiny_model):
    return moved(lora.attach(tiny_model, ALL, jax.random.key(1)))


@pytest.mark.parametrize("form", [lambda model: model, unstack], ids=["stacked", "unstacked"])
def test_a_fresh_adapter_changes_nothing(tiny_model, tokens, form):
    model = form(tiny_model)
    fresh = lora.attach(model, ALL, jax.random.key(1))
    np.testing.assert_array_equal(logits_of(fresh, tokens), logits_of(model, tokens))
    assert not lora.is_attached(model) and lora.is_attached(fresh)
    assert_same(fresh, form(lora.attach(tiny_model, ALL, jax.random.key(1))))
    assert_same(lora.merge(fresh), model)
    assert lora.merge(model) is model


def test_a_is_drawn_anew_for_each_layer_and_kernel(tiny_model):
    a = lora.attach(tiny_model, ALL, jax.random.key(1)).h
    drawn = [a.attn.c_attn.lora_a, a.attn.c_proj.lora_a, a.mlp.c_fc.lora_a]
    layers = [np.asarray(layer) for stack in drawn for layer in stack[...]]
    assert len({layer.tobytes() for layer in layers}) == 9
    assert all(np.abs(layer).max() <= 32**-0.5 and layer.std() > 0.05 for layer in layers)


@pytest.mark.parametrize("seed", range(2))
def test_attached_merged_and_explicit_agree(seed):
    """Of random models and targets: logits, and the gradients of A and B against those of W + scale A B."""
    rng = np.random.default_rng(seed)
    heads = int(rng.integers(1, 4))
    config = GPT2Config(
        vocab_size=int(rng.integers(5, 40)), n_positions=8, n_embd=4 * heads, n_layer=int(rng.integers(1, 4)),
        n_head=heads, n_inner=int(rng.integers(4, 30)), initializer_range=0.3,
        tie_word_embeddings=bool(rng.integers(2)), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    targets = "|".join(rng.choice(lora.NAMES, rng.integers(1, 5), replace=False))
    options = LoraConfig(rank=int(rng.integers(1, 5)), alpha=float(rng.uniform(1, 9)), targets=targets, rslora=seed > 0)
    base = jax.jit(GPT2, static_argnums=0)(config, jax.random.key(seed))
    model = moved(lora.attach(base, options, jax.random.key(seed)))
    tokens = rng.integers(0, config.vocab_size, (2, 7)).astype(np.int32)
    batch = {"tokens": tokens, "mask": np.ones((2, 6), bool)}
    of_adapters = lora.adapters(model)
    assert num_parameters(model) - num_parameters(base) == sum(x.size for x in jax.tree.leaves(of_adapters))

    rest = split(model, FinetuneConfig(freeze=ADAPTERS))[0]

    @jax.jit
    def computed(adapters, rest):
        whole = join(adapters, rest)
        logits = [model(tokens) for model in (whole, lora.merge(whole), lora.merge(unstack(whole)))]
        loss = lambda adapters, change: sum_of_losses(change(join(adapters, rest)), batch)
        return logits, jax.grad(loss)(adapters, lambda model: model), jax.grad(loss)(adapters, lora.merge)

    logits, gradients, of_explicit = computed(of_adapters, rest)
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits[0], logits[2], rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), gradients, of_explicit)
    assert all(np.abs(gradient).max() > 1e-3 for gradient in jax.tree.leaves(gradients))


def test_the_scale_is_of_alpha_and_rank():
    assert LoraConfig(rank=8, alpha=16.0).scale == 2.0
    assert LoraConfig(rank=16, alpha=8.0, rslora=True).scale == 2.0


def test_an_adapter_drops_its_own_input_and_nothing_else(tiny_model, tokens):
    key, dropping = jax.random.key(3), lora.attach(tiny_model, dataclasses.replace(ALL, dropout=0.5), jax.random.key(1))
    np.testing.assert_array_equal(logits_of(dropping, tokens, key), logits_of(tiny_model, tokens))  # B is zero
    dropping = moved(dropping)
    undropped = moved(lora.attach(tiny_model, ALL, jax.random.key(1)))
    np.testing.assert_array_equal(logits_of(dropping, tokens), logits_of(undropped, tokens))
    dropped = logits_of(dropping, tokens, key)
    assert np.abs(dropped - logits_of(dropping, tokens)).max() > 1e-3
    np.testing.assert_allclose(logits_of(unstack(dropping), tokens, key), dropped, rtol=1e-4, atol=1e-4)
    assert lora.dropout_of(dropping) == 0.5 and lora.dropout_of(tiny_model) == 0.0

    def layer(name):
        linear = Linear(4, (4,), key, std=0.0, dtype=jnp.float32, name=name)
        lora.put(linear, Adapter(1.0, 0.5), jnp.eye(4), jnp.eye(4))
        return np.asarray(linear(jnp.ones((1000, 4)), key))

    one, other = layer("h.attn.c_attn"), layer("h.attn.c_proj")  # which share the key of a block
    assert set(np.unique(one)) == {0.0, 2.0} and one.mean() == pytest.approx(1.0, abs=0.1)
    assert (one == other).mean() == pytest.approx(0.5, abs=0.05)


def test_in_bfloat16(attached, tokens):
    config = dataclasses.replace(attached.config, dtype="bfloat16")
    half = moved(lora.attach(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), ALL, jax.random.key(1)))
    assert half.h.attn.c_attn.lora_a[...].dtype == jnp.float32
    got = logits_of(half, tokens)
    np.testing.assert_allclose(got, logits_of(attached, tokens), atol=0.15)
    np.testing.assert_allclose(got, logits_of(lora.merge(half), tokens), atol=0.15)


def test_what_writes_and_speaks_merges(attached, tokens, tmp_path):
    lm = LanguageModel(attached, train_characters(["abc"]))
    assert_same(lm.model, unstack(lora.merge(attached)))
    weights.save(attached, tmp_path, "safetensors")
    assert_same(weights.load(weights.find(tmp_path), attached.config, stacked=True), lora.merge(attached))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rank": 2, "targets": "q_proj"},
            "lora.targets is 'q_proj', which is found in no name of h.attn.c_attn, h.attn",
        ),
        ({"rank": 0}, "lora.rank is 0; adapters need at least 1"),
        ({"rank": 33}, "lora.rank is 33; it must be at most 32, the smaller side of h.attn.c_attn"),
    ],
)
def test_what_is_not_attached(tiny_model, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        lora.attach(tiny_model, LoraConfig(**options), jax.random.key(0))


def test_adapters_are_not_stacked_on_adapters(tiny_model, attached):
    again = r"the model has adapters already; merge them first \(lora.merge\)"
    with pytest.raises(InputError, match=again):
        lora.attach(attached, ALL, jax.random.key(0))
    with pytest.raises(InputError, match=again):
        gpt2_jax.resize(attached, vocab_size=200)
    with pytest.raises(InputError, match=r"finetune.train is .*lora_.*, which is found in no parameter's name"):
        lora.adapters(tiny_model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": -1}, "lora.rank is -1; it must be 0 (no adapters) or more"),
        ({"alpha": 0.0}, "lora.alpha is 0.0; it must be above 0, and finite"),
        ({"dropout": 1.0}, "lora.dropout is 1.0; it must be in [0, 1)"),
        ({"targets": "("}, "lora.targets is '('; it must be a regular expression (missing )"),
        ({"also_train": "["}, "lora.also_train is '['; it must be a regular expression (unterminated"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        LoraConfig(**options)

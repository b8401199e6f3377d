import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gpt2_jax import InputError
from gpt2_jax.model import GPT2, num_parameters, parameter_names, unstack
from gpt2_jax.model_config import ACTIVATIONS, GPT2Config, preset


def build(config: GPT2Config, seed: int = 0) -> GPT2:
    return jax.jit(GPT2, static_argnums=0)(config, jax.random.key(seed))


@pytest.mark.parametrize(
    ("name", "count"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_presets_have_the_published_number_of_parameters(name, count):
    model = jax.eval_shape(lambda key: GPT2(GPT2Config(**preset(name)), key), jax.random.key(0))
    assert num_parameters(model) == count


def test_unknown_preset():
    with pytest.raises(InputError, match="no preset 'gpt3'; it must be one of gpt2, gpt2-medium, gpt2-large, gpt2-xl"):
        preset("gpt3")


def test_parameter_names_are_those_of_gpt2(tiny_model):
    names = set(jax.tree.leaves(parameter_names(tiny_model)))
    linear = [f"h.{part}.{leaf}" for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
              for leaf in ("kernel", "bias")]  # fmt: skip
    norms = [f"{norm}.{leaf}" for norm in ("h.ln_1", "h.ln_2", "ln_f") for leaf in ("scale", "bias")]
    assert names == {"wte.embedding", "wpe.embedding", *linear, *norms}


def test_a_prediction_depends_on_no_later_token(tiny_model):
    """The gradient of the logits at position t with respect to the inputs is zero after t, and not before."""
    tokens = jnp.arange(8)[None]

    def outputs(inputs):  # [1, 8, C] added to the embeddings, through a model whose positions they are
        model = jax.tree.map(lambda x: x, tiny_model)
        model.wpe.embedding[...] = tiny_model.wpe.embedding[...].at[:8].add(inputs[0])
        return model(tokens).sum(-1)[0]  # [8]

    jacobian = jax.jacobian(outputs)(jnp.zeros((1, 8, tiny_model.config.n_embd)))  # [t, 1, s, C]
    reach = np.abs(jacobian[:, 0]).sum(-1)
    assert (reach[np.triu_indices(8, 1)] == 0).all()
    assert (reach[np.tril_indices(8)] > 0).all()


def test_padding_of_the_vocabulary_changes_nothing_and_never_wins(tiny, tiny_model, tokens):
    exact = build(dataclasses.replace(tiny, vocab_size=101, vocab_multiple=1))
    assert tiny_model.wte.embedding.shape[0] == 128 and exact.wte.embedding.shape[0] == 101
    np.testing.assert_allclose(tiny_model(tokens), exact(tokens), rtol=1e-5, atol=1e-5)
    padded = tiny_model.head(tiny_model.hidden(tokens))
    assert padded.shape[-1] == 128 and (padded.argmax(-1) < 101).all()
    assert (jax.nn.softmax(padded)[..., 101:] == 0).all()


def test_stacked_and_unstacked_models_agree(tiny_model, tokens):
    flat = unstack(tiny_model)
    assert isinstance(flat.h, nnx.List) and len(flat.h) == 3 and unstack(flat) is flat
    assert not isinstance(tiny_model.h, nnx.List)
    kernel, weight = tiny_model.h.attn.c_attn.kernel, flat.h[1].attn.c_attn.weight
    assert kernel.shape == (3, 32, 3, 32) and weight.shape == (3, 32, 32)
    np.testing.assert_array_equal(weight, np.moveaxis(kernel[1], 0, -1))
    np.testing.assert_allclose(flat(tokens), tiny_model(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"remat": "dots"}, {"remat": "named"}, {"remat": "full"}, {"remat": "full", "scan_unroll": 3}]
)
def test_remat_changes_no_gradient_and_needs_less_memory(tiny, tokens, options):
    loss = lambda model: jnp.square(model(jnp.asarray(tokens), key=jax.random.key(1))).mean()

    def program(**options):
        model = build(dataclasses.replace(tiny, resid_pdrop=0.1, **options))
        compiled = jax.jit(jax.grad(loss)).lower(model).compile()
        return compiled(model), compiled.memory_analysis().temp_size_in_bytes

    (plain, all_of_it), (recomputed, less) = program(remat="none"), program(**options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
                 jax.tree.leaves(plain), jax.tree.leaves(recomputed))  # fmt: skip
    assert less < all_of_it


def test_bfloat16_keeps_float32_parameters_and_logits(tiny, tiny_model, tokens):
    model = build(dataclasses.replace(tiny, dtype="bfloat16"))
    assert {x.dtype for x in jax.tree.leaves(model)} == {jnp.dtype("float32")}
    assert model.hidden(tokens).dtype == jnp.bfloat16
    logits = model(tokens)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, tiny_model(tokens), atol=0.15 * float(jnp.abs(logits).max()))


@pytest.mark.parametrize(
    "change",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"activation_function": "relu"},
        {"layer_norm_epsilon": 0.1},
        {"tie_word_embeddings": False},
        {"n_inner": 48},
    ],
)
def test_each_field_changes_the_forward_pass(tiny, tiny_model, tokens, change):
    assert np.abs(build(dataclasses.replace(tiny, **change))(tokens) - tiny_model(tokens)).max() > 1e-3


def test_reorder_and_upcast_attn_is_exact_in_float32_and_closer_in_bfloat16(tiny, tiny_model, tokens):
    with_upcast = lambda **kw: build(dataclasses.replace(tiny, reorder_and_upcast_attn=True, **kw))(tokens)
    np.testing.assert_allclose(with_upcast(), tiny_model(tokens), rtol=1e-5, atol=1e-5)
    assert np.isfinite(with_upcast(dtype="bfloat16")).all()


def test_initial_scale(tiny):
    config = dataclasses.replace(tiny, n_embd=256, initializer_range=0.02, n_layer=2)
    model = build(config)
    std = lambda x: float(jnp.std(x[...]))
    assert std(model.h.attn.c_attn.kernel) == pytest.approx(0.02, rel=0.05)
    assert std(model.h.attn.c_proj.kernel) == pytest.approx(0.02 / 2, rel=0.05)
    assert std(model.h.mlp.c_proj.kernel) == pytest.approx(0.02 / 2, rel=0.05)
    assert not jnp.array_equal(model.h.mlp.c_fc.kernel[0], model.h.mlp.c_fc.kernel[1])
    assert (model.wte.embedding[101:] == 0).all()


@pytest.mark.parametrize("field", ["resid_pdrop", "embd_pdrop", "attn_pdrop"])
def test_each_dropout_acts_with_a_key_only(tiny, tokens, field):
    model = build(dataclasses.replace(tiny, **{field: 0.3}))
    assert not np.allclose(model(tokens, key=jax.random.key(0)), model(tokens, key=jax.random.key(1)))
    np.testing.assert_array_equal(model(tokens), model(tokens))


def test_activations_match_their_definitions():
    x = jnp.linspace(-3, 3, 13)
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), x * jax.scipy.stats.norm.cdf(x), atol=1e-6)
    tanh = 0.5 * x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    for name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"):
        np.testing.assert_allclose(ACTIVATIONS[name](x), tanh, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_head": 5}, r"model.n_head is 5, which does not divide model.n_embd \(768\); use one of 1, 2, 3, 4, 6"),
        ({"n_layer": 0}, "model.n_layer is 0; it must be at least 1"),
        ({"attn_pdrop": 1.0}, r"model.attn_pdrop is 1.0; it must be in \[0, 1\)"),
        ({"layer_norm_epsilon": 0.0}, "model.layer_norm_epsilon is 0.0; it must be above 0"),
        ({"activation_function": "gleu"}, "model.activation_function is 'gleu'; it must be one of gelu_new"),
        ({"dtype": "float16"}, "model.dtype is 'float16'; it must be one of float32, bfloat16"),
    ],
)
def test_impossible_configs(options, message):
    with pytest.raises(InputError, match=message):
        GPT2Config(**options)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.zeros((1, 33), np.int32), "the sequence has 33 tokens; the model's context is 32"),
        (np.full((1, 4), 101), "token id 101 is outside the vocabulary; ids must be from 0 to 100"),
        (np.full((1, 4), -1), "token id -1 is outside the vocabulary"),
        (np.zeros((1, 4)), r"tokens are float(32|64)\[1, 4\]; they must be integers"),
        (np.zeros(4, np.int32), r"tokens are int32\[4\]; they must be integers \[batch, length\]"),
        (np.zeros((1, 0), np.int32), r"tokens are int32\[1, 0\]"),
    ],
)
def test_bad_tokens(tiny_model, tokens, message):
    with pytest.raises(InputError, match=message):
        tiny_model(tokens)


def test_tokens_may_be_lists(tiny_model):
    np.testing.assert_array_equal(tiny_model([[1, 2, 3]]), tiny_model(np.array([[1, 2, 3]])))
    with pytest.raises(InputError, match="tokens are rows of different lengths; run them one by one, or pad them all"):
        tiny_model([[1, 2, 3], [1]])

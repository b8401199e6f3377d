"""Mixes of models: the formula of DExperts, in every way of generating."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpt2_jax
from gpt2_jax import InputError, LanguageModel
from gpt2_jax.generation import sampler
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_characters

TOKENIZER = train_characters(["abcdefghij "])
GREEDY = {"temperature": 0, "eos_token_id": []}


def make(seed, n_positions=16, n_embd=16, n_layer=1, **options):
    config = GPT2Config(
        vocab_size=len(TOKENIZER), n_positions=n_positions, n_embd=n_embd, n_layer=n_layer, n_head=2,
        initializer_range=0.4, **options,
    )  # fmt: skip
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(seed)), TOKENIZER)


@pytest.fixture(scope="module")
def base():
    return make(0)


@pytest.fixture(scope="module")
def expert():
    return make(1, n_embd=32)


@pytest.fixture(scope="module")
def anti():
    return make(2, n_layer=2, n_positions=12)


@pytest.fixture(scope="module")
def mixed(base, expert, anti):
    return gpt2_jax.mix(base, expert=expert, anti_expert=anti, alpha=1.5)


TEXTS = np.random.default_rng(0).integers(0, len(TOKENIZER), (2, 8))


def test_logits_are_those_of_the_formula(base, expert, anti, mixed):
    b, e, a = (np.asarray(lm.model(TEXTS)) for lm in (base, expert, anti))
    product, anti_only = (gpt2_jax.mix(base, alpha=2.0, **of) for of in ({"expert": expert}, {"anti_expert": anti}))
    np.testing.assert_allclose(mixed.model(TEXTS), b + 1.5 * (e - a), atol=1e-4)
    np.testing.assert_allclose(product.model(TEXTS), b + 2 * e, atol=1e-4)
    np.testing.assert_allclose(anti_only.model(TEXTS), b + 2 * (b - a), atol=1e-4)
    assert mixed.config.n_positions == 12 and product.config.n_positions == 16


def test_every_way_of_generating_follows_the_mixed_logits(mixed):
    forward = jax.jit(lambda model, tokens: model(tokens))
    best = lambda text: int(forward(mixed.model, np.array([text + [0] * (12 - len(text))]))[0, len(text) - 1].argmax())
    greedy = mixed.generate([1, 2], max_new_tokens=6, **GREEDY)
    tokens = greedy.tokens.tolist()
    assert all(token == best(tokens[:i]) for i, token in enumerate(tokens) if i >= 2)
    assert "".join(mixed.stream([1, 2], max_new_tokens=6, **GREEDY)) == greedy.completion
    (beam,) = mixed.generate([[1, 2]], num_beams=2, max_new_tokens=5, eos_token_id=[])
    log_p = jax.nn.log_softmax(mixed.model(beam.tokens[None]))[0]
    score = sum(float(log_p[i - 1, beam.tokens[i]]) for i in range(2, 7)) / 5
    assert beam.score == pytest.approx(score, abs=1e-4)


def test_no_weight_and_equal_experts_leave_the_base(base, expert):
    want = base.generate("a", max_new_tokens=8, seed=1).text
    assert gpt2_jax.mix(base, expert=expert, alpha=0).generate("a", max_new_tokens=8, seed=1).text == want
    same = gpt2_jax.mix(base, expert=expert, anti_expert=expert)
    np.testing.assert_allclose(same.model(TEXTS), base.model(TEXTS), atol=1e-5)


def test_models_of_other_types_keep_their_own(base):
    half = make(1, dtype="bfloat16")
    mixed = gpt2_jax.mix(base, expert=half, alpha=1.0)
    np.testing.assert_allclose(mixed.model(TEXTS), base.model(TEXTS) + half.model(TEXTS), atol=1e-4)


def test_another_alpha_compiles_nothing_anew_and_copies_nothing(base, expert, anti, mixed):
    mixed.generate("a", max_new_tokens=3)
    before = sampler.fill._cache_size(), sampler.advance._cache_size()
    other = gpt2_jax.mix(base, expert=expert, anti_expert=anti, alpha=-0.5)
    other.generate("a", max_new_tokens=4, temperature=0.5)
    assert (sampler.fill._cache_size(), sampler.advance._cache_size()) == before
    assert other.model.models[0].wte.embedding[...] is base.model.wte.embedding[...]


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ({}, "a mix of one model is that model; give expert=, anti_expert= or both"),
        ({"alpha": float("nan")}, r"alpha is nan; it must be a number from -1e\+06 to 1e\+06"),
    ],
)
def test_what_cannot_be_mixed(base, expert, experts, message):
    with pytest.raises(InputError, match=message):
        gpt2_jax.mix(base, **({"expert": expert} if experts else {}), **experts)


def test_other_vocabularies_are_refused(base, mixed):
    other = LanguageModel(base.model, train_characters(["abcdefghik "]))
    with pytest.raises(InputError, match=r"expert has another tokenizer than base, from token 10 on; train it with"):
        gpt2_jax.mix(base, expert=other)
    grown = LanguageModel(gpt2_jax.resize(base.model, vocab_size=20), TOKENIZER)
    with pytest.raises(InputError, match=r"anti_expert has a vocabulary of 20 and base one of 12; train it"):
        gpt2_jax.mix(base, anti_expert=grown)
    with pytest.raises(InputError, match="base is a mix of models; mix models that were loaded"):
        gpt2_jax.mix(mixed, expert=base)


def test_what_a_mix_has_not(mixed, tmp_path):
    with pytest.raises(InputError, match=r"penalty_alpha is 0.6 with a mix of models; contrastive search compares"):
        mixed.generate("a", penalty_alpha=0.6, top_k=4, max_new_tokens=3)
    with pytest.raises(InputError, match="a mix of models has no file format; save its models one by one"):
        gpt2_jax.save(mixed, tmp_path)
    with pytest.raises(InputError, match="a mix of models has no size of its own; resize its models, then mix them"):
        gpt2_jax.resize(mixed.model, vocab_size=9)
    with pytest.raises(InputError, match="the sequence has 13 tokens; the model's context is 12"):
        mixed.model(jnp.zeros((1, 13), int))

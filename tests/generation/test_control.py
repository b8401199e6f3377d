"""Control codes before prompts, and guidance away from other codes or none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax import InputError, LanguageModel
from gpt2_jax.generation import sampler
from gpt2_jax.generation.options import parse
from gpt2_jax.generation.request import make_request
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_characters

GREEDY = {"temperature": 0, "eos_token_id": []}


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_characters(["abcdefgh "]).with_special_tokens(["<|poetry|>", "<|code|>"])
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=16, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(1)), tokenizer)


@pytest.fixture(scope="module")
def log_p(lm):
    """Log-probabilities of the token after a text."""
    forward = jax.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)[0]))
    return lambda text: forward(lm.model, jnp.array([[*text, *[0] * (16 - len(text))]]))[len(text) - 1]


def ids(lm, text):
    return lm.tokenizer.encode(text, allow_special=True)


def request(lm, *prompts, **options):
    return make_request(prompts, parse(options), lm.tokenizer, lm.config)


def test_the_codes_of_a_tokenizer(lm):
    assert list(lm.tokenizer.control_codes) == ["poetry", "code"]
    assert train_characters(["a"]).control_codes == {}


def test_a_text_begins_as_a_document_of_training_does(lm):
    made = request(lm, "ab", "", ids(lm, "<|endoftext|>c"), control=["poetry", "code", "code"])
    begun = ["<|endoftext|><|poetry|>ab", "<|endoftext|><|code|>", "<|endoftext|><|code|>c"]
    assert made.prompts == [ids(lm, text) for text in begun] and made.heads == [2, 2, 2]
    assert request(lm, "ab").prompts == [ids(lm, "ab")] and request(lm, "ab").heads == [0]


def test_a_code_is_no_part_of_the_text(lm):
    result = lm.generate("ab", control="poetry", max_new_tokens=8, **GREEDY)
    spelled = lm.generate(ids(lm, "<|endoftext|><|poetry|>ab"), max_new_tokens=8, **GREEDY)
    assert result.tokens[:4].tolist() == ids(lm, "<|endoftext|><|poetry|>ab")
    assert result.text == "ab" + result.completion and spelled.tokens.tolist() == result.tokens.tolist()


def test_every_way_of_generating_takes_a_code(lm):
    both = lm.generate(["a", "b"], control=["poetry", "code"], max_new_tokens=6, seed=3)
    for together, text, code in zip(both, ("a", "b"), ("poetry", "code")):
        assert lm.generate(text, control=code, max_new_tokens=6, seed=3).text == together.text
    streamed = "".join(lm.stream("a", control="poetry", max_new_tokens=6, seed=3))
    assert streamed == both[0].completion
    spelled = ids(lm, "<|endoftext|><|code|>b")
    for options in ({"num_beams": 3}, {"penalty_alpha": 0.5, "top_k": 3}):
        by_code = lm.generate("b", control="code", max_new_tokens=6, **options)
        assert by_code.tokens.tolist() == lm.generate(spelled, max_new_tokens=6, **options).tokens.tolist()


def test_guidance_leads_away_from_the_prompt_without_the_code_or_with_another(lm):
    bare, code = ids(lm, "<|endoftext|>ab"), ids(lm, "<|endoftext|><|code|>ab")
    away = lambda **options: request(lm, "ab", "", guidance_scale=2, **options)
    assert away(control="poetry").negative == [bare, bare[:1]] and away(control="poetry").negative_heads == [0, 0]
    assert away(control="poetry", negative_control="code").negative == [code, code[:2]]
    assert away(negative_control="code").negative == [code, code[:2]] and away().negative == [bare[:1]] * 2
    assert away(control="poetry", negative_prompt="ab").negative == [bare[1:]] * 2
    assert away(negative_control="code", negative_prompt="ab").negative == [code] * 2
    assert away(negative_control="code").negative_heads == [2, 2]


def test_the_formula_of_guidance(lm, log_p):
    """Greedy tokens, one by one, are those of log p(bare) + scale * (log p(code) - log p(bare))."""
    found = lm.generate("ab", control="poetry", guidance_scale=3.0, max_new_tokens=6, logprobs=0, **GREEDY)
    yes, no = ids(lm, "<|endoftext|><|poetry|>ab"), ids(lm, "<|endoftext|>ab")
    for token, noted in zip(found.tokens[4:], found.logprobs):
        assert token == int((log_p(no) + 3 * (log_p(yes) - log_p(no))).argmax())
        assert noted == pytest.approx(float(log_p(yes)[token]), abs=1e-4)
        yes, no = [*yes, token], [*no, token]
    assert found.tokens.tolist() != lm.generate("ab", control="poetry", max_new_tokens=6, **GREEDY).tokens.tolist()


def test_known_logits():
    guided = sampler.guide(jnp.log(jnp.array([[0.2, 0.8]])), jnp.log(jnp.array([[1 / 3, 2 / 3]])), jnp.float32(3))
    odds = jnp.exp(guided[0, 1] - guided[0, 0])
    assert odds == pytest.approx(2 * (4 / 2) ** 3, rel=1e-5)  # of the negative, times the ratio to the scale


def test_another_scale_or_code_compiles_nothing_anew(lm):
    go = lambda scale, code: lm.generate("a", control=code, guidance_scale=scale, max_new_tokens=3)
    go(2.0, "poetry")
    before = sampler.fill._cache_size(), sampler.advance._cache_size()
    go(5.0, "code")
    go(0.5, "poetry")
    assert (sampler.fill._cache_size(), sampler.advance._cache_size()) == before


def test_a_context_that_slides_keeps_the_code(lm, log_p):
    long = lm.generate("ab", control="poetry", max_new_tokens=40, beyond_context="slide", **GREEDY).tokens.tolist()
    text, begin = ids(lm, "<|endoftext|><|poetry|>ab"), 0
    for token in long[4:]:
        if len(text) - begin > 16:
            begin = len(text) - 8
        assert token == int(log_p([*text[:2], *text[begin + 2 :]]).argmax())
        text.append(token)
    assert long == text and len(long) == 44


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"control": "prose"},
            "control is 'prose', which is no control code of this model; its tokenizer has poetry",
        ),
        ({"control": ["code", "code"]}, "control has 2 codes for 1 prompts; give one, or one a prompt"),
        ({"negative_control": "code"}, "negative_control is 'code', which has no effect without guidance_scale"),
        (
            {"control": "code", "negative_control": "code", "guidance_scale": 2},
            "negative_control is 'code' and control 'code': guidance away from the same text has no effect",
        ),
        ({"negative_control": "x", "guidance_scale": 2}, "negative_control is 'x', which is no control code"),
    ],
)
def test_what_cannot_be(lm, options, message):
    with pytest.raises(InputError, match=message):
        lm.generate("a", **options)


def test_a_model_without_codes_says_how_to_get_them(lm):
    plain = LanguageModel(lm.model, train_characters([" abcdefghij"]))
    with pytest.raises(InputError, match=r"its tokenizer has none: train with --config.data.control_codes=True"):
        plain.generate("a", control="poetry")
    assert np.size(plain.generate("a", max_new_tokens=1).tokens)

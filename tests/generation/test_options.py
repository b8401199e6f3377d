"""Every name of transformers' GenerationConfig is refused, or changes what is generated."""

import re

import jax
import pytest

from gpt2_jax import InputError, LanguageModel
from gpt2_jax.generation.options import DEFAULTS, ELSEWHERE, parse
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_characters

# Every name of GenerationConfig in transformers 4.57.6 and 5.23.
TRANSFORMERS = """
_from_model_config assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind
bad_words_ids begin_suppress_tokens bos_token_id cache_config cache_implementation compile_config constraints
continuous_batching_config decoder_start_token_id disable_compile diversity_penalty do_sample dola_layers
early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty eos_token_id epsilon_cutoff eta_cutoff
exponential_decay_length_penalty force_words_ids forced_bos_token_id forced_eos_token_id generation_kwargs
guidance_scale is_assistant length_penalty low_memory max_cache_len max_length max_matching_ngram_size max_new_tokens
max_time min_length min_new_tokens min_p no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule
num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_logits output_scores
pad_token_id penalty_alpha prefill_chunk_size prompt_lookup_num_tokens remove_invalid_values renormalize_logits
repetition_penalty return_dict_in_generate return_legacy_cache sequence_bias speculation_type stop_strings
suppress_tokens target_lookbehind temperature token_healing top_h top_k top_p transformers_version typical_p use_cache
use_mtp watermarking_config
""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", sorted(set(TRANSFORMERS) - set(DEFAULTS)))
def test_every_other_name_of_transformers_is_refused_with_the_way_out(name):
    with pytest.raises(InputError, match=rf"{name} is not an option here: {re.escape(ELSEWHERE[name])}"):
        parse({name: 1})


@pytest.mark.parametrize(("name", "near"), [("topp", "top_p"), ("max_tokens", "max_new_tokens"), ("Seed", "seed")])
def test_a_misspelt_name_is_refused_with_the_nearest(name, near):
    with pytest.raises(InputError, match=f"there is no option '{name}'; did you mean '{near}'"):
        parse({name: 1})
    with pytest.raises(InputError, match="there is no option 'xyzzy'; known: max_new_tokens, min_new_tokens"):
        parse({"xyzzy": 1})


def test_the_default_temperature_draws_alone_and_searches_greedily():
    assert parse({}).drawing_temperature == 1.0
    assert parse({"num_beams": 2}).drawing_temperature == 0.0
    assert parse({"penalty_alpha": 0.6, "top_k": 4}).drawing_temperature == 0.0
    assert parse({"num_beams": 2, "temperature": 0.7}).drawing_temperature == 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be a whole number, at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; it must be a whole number"),
        ({"min_new_tokens": -1}, "min_new_tokens is -1; it must be a whole number, at least 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, r"min_new_tokens is 9; it must be at most max_new_tokens \(8\)"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0; it must be a whole number, at least 1"),
        ({"num_beams": True}, "num_beams is True; it must be a whole number, at least 1"),
        ({"logprobs": -1}, "logprobs is -1; it must be a whole number, at least 0"),
        ({"best_of": 2, "num_return_sequences": 3}, r"best_of is 2; it must be at least num_return_sequences \(3\)"),
        ({"max_time": 0}, "max_time is 0; it must be above 0 seconds, or None for no bound"),
        ({"guidance_scale": 0}, "guidance_scale is 0; it must be above 0, where 1 is off"),
        ({"beyond_context": "cut"}, "beyond_context is 'cut'; it must be 'error' or 'slide'"),
        ({"temperature": 0, "top_p": 0.9}, "top_p is 0.9, which has no effect without a temperature above 0"),
        ({"num_beams": 2, "top_k": 5}, "top_k is 5, which has no effect without a temperature above 0"),
        ({"temperature": 0, "best_of": 2}, "best_of is 2, which has no effect without a temperature above 0"),
        ({"length_penalty": 2.0}, "length_penalty is 2.0, which has no effect without num_beams above 1"),
        ({"early_stopping": "never"}, "early_stopping is 'never', which has no effect without num_beams above 1"),
        ({"negative_prompt": "no"}, "negative_prompt is 'no', which has no effect without guidance_scale other than 1"),
        (
            {"num_beams": 2, "guidance_scale": 2},
            "guidance_scale is 2, which beam search does not take; remove it, or num_beams",
        ),
        ({"num_beams": 2, "logprobs": 0}, "logprobs is 0, which beam search does not take; remove it, or num_beams"),
        (
            {"penalty_alpha": 0.6, "top_k": 4, "stop_strings": ["x"]},
            r"stop_strings is \['x'\], which contrastive search does not take; remove it, or penalty_alpha",
        ),
        (
            {"num_beams": 2, "stop_strings": "a"},
            r"stop_strings is \('a',\), which beam search does not take; remove it",
        ),
        ({"penalty_alpha": 0.5, "num_beams": 2}, "num_beams is 2 beside penalty_alpha: contrastive search has no"),
        (
            {"penalty_alpha": 0.5, "temperature": 1},
            "temperature is 1 beside penalty_alpha: contrastive search draws nothing",
        ),
    ],
)
def test_values_out_of_range_and_options_without_effect(options, message):
    with pytest.raises(InputError, match=message):
        parse(options)


TEXT = "abcdefghijklmnopqrstuvwxyz "
GREEDY = {"temperature": 0}
ENDLESS = {"eos_token_id": []}
BEAMS = {"num_beams": 4, "num_return_sequences": 4, "eos_token_id": [0, 5, 9]}
# {option: (value, beside which others)}: with and without it, results differ.
EFFECTS = {
    "max_new_tokens": (9, GREEDY),
    "min_new_tokens": (8, {**GREEDY, "eos_token_id": list(range(20))}),
    "num_return_sequences": (2, {}),
    "temperature": (0.3, ENDLESS),
    "top_k": (2, ENDLESS),
    "top_p": (0.2, ENDLESS),
    "min_p": (0.9, ENDLESS),
    "typical_p": (0.1, ENDLESS),
    "epsilon_cutoff": (0.2, ENDLESS),
    "eta_cutoff": (0.5, ENDLESS),
    "repetition_penalty": (50.0, GREEDY),
    "no_repeat_ngram_size": (1, GREEDY),
    "bad_words_ids": (list(TEXT[:20]), GREEDY),
    "sequence_bias": ({"q": 50.0}, GREEDY),
    "suppress_tokens": (list(range(20)), GREEDY),
    "begin_suppress_tokens": (list(range(26)), GREEDY),
    "exponential_decay_length_penalty": ((2, 40.0), GREEDY),
    "forced_bos_token_id": (7, {}),
    "forced_eos_token_id": (7, {**GREEDY, "eos_token_id": []}),
    "num_beams": (4, GREEDY),
    "num_beam_groups": (2, {**BEAMS, "diversity_penalty": 5.0}),
    "diversity_penalty": (5.0, {**BEAMS, "num_beam_groups": 2}),
    "length_penalty": (8.0, BEAMS),
    "early_stopping": (True, BEAMS),
    "penalty_alpha": (0.9, {"top_k": 4}),
    "guidance_scale": (4.0, GREEDY),
    "eos_token_id": (list(range(20)), GREEDY),
    "stop_strings": (list(TEXT[:20]), GREEDY),
    "max_time": (1e-9, GREEDY),
}  # fmt: skip


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_characters([TEXT])
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.4
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(3)), tokenizer)


def test_all_are_here():
    assert set(EFFECTS) == set(TRANSFORMERS) & set(DEFAULTS)


@pytest.mark.parametrize("name", sorted(EFFECTS))
def test_an_option_changes_what_is_generated(lm, name):
    value, others = EFFECTS[name]
    others = {"max_new_tokens": 16} | others
    default = {key: others[key] for key in others if key != name}
    with_it = described(lm.generate("the", **others | {name: value}))
    try:
        assert with_it != described(lm.generate("the", **default))
    except InputError:  # some options are for others alone, which say so without them
        assert name in ("num_beam_groups", "diversity_penalty")
        less = {"num_beam_groups": 4, "diversity_penalty": 0.01}[name]
        assert with_it != described(lm.generate("the", **default | {name: less}))


def described(results):
    results = results if isinstance(results, list) else [results]
    return [(r.text, r.stop_reason, len(r.tokens)) for r in results]

"""What is read of the page's controls, and of requests made by hand."""

import pytest

from gpt2_jax import InputError
from gpt2_jax.generation.options import Options, parse
from gpt2_jax.page import settings
from gpt2_jax.page.settings import BEAMS, CONTRASTIVE, DRAWN_BEAMS, EVERY, GREEDY, SETTINGS, options


def test_every_option_is_on_the_page():
    elsewhere = {"seed", "num_return_sequences", "logprobs"}  # the seed, candidates, and a tab of their own
    assert {setting.name for setting in SETTINGS} == {field.name for field in Options.fields()} - elsewhere


def test_a_fresh_page_asks_for_what_is_usual():
    assert options({}) == {"max_new_tokens": 128, "temperature": 0.8, "top_p": 0.95}


@pytest.mark.parametrize("method", EVERY)
def test_a_fresh_page_is_right_with_every_method(method):
    extra = {"top_k": settings.CONTRASTIVE_TOP_K} if method == CONTRASTIVE else {}
    parse(options({"method": method, **extra}))


def test_a_method_takes_its_own_settings_alone():
    everything = {"temperature": 0.5, "num_beams": 3, "penalty_alpha": 0.3, "top_k": 7, "max_time": "2.5"}
    asked = {method: options({"method": method, **everything}) for method in EVERY}
    assert asked[GREEDY] == {"temperature": 0, "max_new_tokens": 128, "max_time": 2.5}
    assert asked[BEAMS] == {"max_new_tokens": 128, "num_beams": 3}
    assert asked[DRAWN_BEAMS].keys() == {"max_new_tokens", "temperature", "top_p", "top_k", "num_beams"}
    assert asked[CONTRASTIVE] == {"max_new_tokens": 128, "penalty_alpha": 0.3, "top_k": 7}


def test_sampling_without_temperature_is_greedy():
    assert options({"temperature": 0, "top_k": 5}) == options({"method": GREEDY})


def test_what_is_typed_is_read():
    asked = options(
        {
            "bad_words_ids": "cat\n dog\\n", "sequence_bias": "a=b=-2.5\nx=1", "suppress_tokens": "1, 2,3",
            "forced_bos_token_id": " 7", "line_length": "40, 0.3", "exponential_decay_length_penalty": "20 1.05",
            "stop_strings": "\\n\\n", "eos_token_id": "", "negative_prompt": "", "control": "verse",
        }
    )  # fmt: skip
    assert asked["bad_words_ids"] == ("cat", " dog\n")
    assert asked["sequence_bias"] == {"a=b": -2.5, "x": 1}
    assert asked["suppress_tokens"] == (1, 2, 3) and asked["forced_bos_token_id"] == 7
    assert asked["line_length"] == (40, 0.3) and asked["exponential_decay_length_penalty"] == (20, 1.05)
    assert asked["stop_strings"] == ("\n\n",) and asked["control"] == "verse"
    assert "eos_token_id" not in asked and "negative_prompt" not in asked


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("max_new_tokens", 10**9, "max_new_tokens is 1000000000; it must be from 1 to 1024 on this page"),
        ("max_new_tokens", 1.5, "max_new_tokens is 1.5; it must be a whole number"),
        ("temperature", float("nan"), "temperature is nan; it must be a number"),
        ("temperature", float("inf"), "temperature is inf; it must be a number"),
        ("temperature", "hot", "temperature is 'hot'; it must be a number"),
        ("temperature", True, "temperature is True; it must be a number"),
        ("top_p", [1], r"top_p is \[1\]; it must be a number"),
        ("best_of", "many", "best_of is 'many'; it must be a number"),
        ("best_of", "1000000", "best_of is 1000000; it must be from 1 to 16 on this page"),
        ("max_time", 1e9, "max_time is 1000000000.0; it must be from 0.1 to 600 on this page"),
        ("beyond_context", "run", "beyond_context is 'run'; it must be one of 'error', 'slide'"),
        ("control", {"a": 1}, "control is {'a': 1}; it must be text"),
        ("negative_prompt", "x" * 2001, "negative_prompt is '2001 characters'; it must be at most 2000 characters"),
        ("bad_words_ids", "a\n" * 65, "bad_words_ids is '65 lines'; it must be at most 64"),
        ("suppress_tokens", "1 " * 65, "suppress_tokens is '65 ids'; it must be at most 64"),
        ("suppress_tokens", "1,x", "suppress_tokens is '1,x'; it must be token ids with commas between them"),
        ("line_length", "40", "line_length is '40'; it must be two numbers with a comma between them"),
        ("line_length", "nan,1", "line_length is 'nan,1'; it must be two numbers with a comma between them"),
        ("sequence_bias", "cat", "sequence_bias has the line 'cat'; it must be a phrase, = and a number, as: cat=-2.5"),
        ("sequence_bias", "a=x", "sequence_bias has the line 'a=x'; it must be a phrase, = and a number"),
        ("sequence_bias", "\n".join(f"{i}=1" for i in range(65)), "sequence_bias is '65 lines'; it must be at most 64"),
        ("method", "magic", "method is 'magic'; it must be one of sample, greedy, beams, drawn_beams, contrastive"),
        ("method", ["sample"], r"method is \['sample'\]; it must be one of"),
    ],
)
def test_what_is_wrong_is_told(name, given, words):
    with pytest.raises(InputError, match=f"^{words}"):
        options({name: given})


@pytest.mark.parametrize(
    ("given", "values", "words"),
    [
        (10**6, {}, "candidates is 1000000; it must be from 1 to 6"),
        (0, {}, "candidates is 0; it must be from 1 to 6"),
        ("3", {}, "candidates is '3'; it must be a whole number"),
        (2, {"method": GREEDY}, "candidates is 2; it must be 1 with a method that draws nothing"),
        (2, {"temperature": 0}, "candidates is 2; it must be 1 with a method that draws nothing"),
    ],
)
def test_candidates_are_bounded(given, values, words):
    with pytest.raises(InputError, match=words):
        settings.read_candidates(given, values)

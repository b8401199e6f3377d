"""What the tabs for writing make of a request, without a server."""

import pytest

from gpt2_jax import InputError
from gpt2_jax.page.parts import Shared
from gpt2_jax.page.settings import SettingsPanel
from gpt2_jax.page.write import PRESETS, job, read_seed
from gpt2_jax.tokenizer_training import train_characters


class Served:
    """A model without what writes its texts."""

    def __init__(self, lm):
        self.lm = lm


@pytest.fixture(scope="module")
def shared(lms):
    return Shared({name: Served(lm) for name, lm in lms.items()})


def test_new_tokens_are_those_that_the_context_has_room_for(shared):
    asked = job(shared, None, "def ", {"max_new_tokens": 200, "min_new_tokens": 100})
    room = 64 - asked.prompt_tokens
    assert (asked.model, asked.cut) == ("first", True)
    assert asked.options["max_new_tokens"] == asked.options["min_new_tokens"] == room
    coded = job(shared, "second", "def ", {"max_new_tokens": 200, "control": "verse"})
    assert coded.options["max_new_tokens"] == room - 2 and coded.prompt_tokens == asked.prompt_tokens + 2
    guided = job(shared, None, "", {"guidance_scale": 2.0, "negative_prompt": "def add(a, b):\n    return a + b\n"})
    assert guided.options["max_new_tokens"] < 63
    slides = job(shared, None, "def ", {"max_new_tokens": 200, "beyond_context": "slide"})
    assert slides.options["max_new_tokens"] == 200 and not slides.cut
    fits = job(shared, None, "def ", {"max_new_tokens": 20})
    assert fits.options["max_new_tokens"] == 20 and not fits.cut


def test_what_generate_refuses_is_refused_at_once(shared):
    with pytest.raises(InputError, match="negative_prompt is 'x', which has no effect without guidance_scale"):
        job(shared, None, "a", {"negative_prompt": "x"})
    with pytest.raises(InputError, match="leave room for a new one"):
        job(shared, None, "def " * 70, {})
    with pytest.raises(InputError, match="suppress_tokens has 5000; it must be a token id"):
        job(shared, None, "a", {"suppress_tokens": "5000"})


def test_seeds():
    assert read_seed("12") == read_seed(12) == read_seed(" 12 ") == 12
    assert 0 <= read_seed("") < 10**6 and len({read_seed(None) for _ in range(20)}) > 10
    with pytest.raises(InputError, match=r"seed is 1.5; it must be a whole number"):
        read_seed("1.5")


def test_presets_are_settings_of_the_page(shared):
    for preset in PRESETS.values():
        job(shared, None, preset.prompt, preset.values)


def test_control_codes_are_those_of_the_model(lms):
    class Plain:
        tokenizer = train_characters(["ab"])

    for update in SettingsPanel.codes_of(lms["first"]):
        assert update["choices"] == [("none", ""), ("verse", "verse"), ("tales", "tales")] and update["interactive"]
    for update in SettingsPanel.codes_of(Plain):
        assert update["choices"] == [("this model has no control codes", "")] and not update["interactive"]

import jax
import pytest

from gpt2_jax import InputError, LanguageModel
from gpt2_jax.generation.rhymes import couplets, last_word, line_lengths, rhyme_bias, rhymed_share, rhyming, spelled
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_bpe


@pytest.mark.parametrize(
    ("word", "ending"),
    [("night", "ight"), ("Light", "ight"), ("love", "ove"), ("trees", "ees"), ("rhythm", "ythm"), ("day", "ay"),
     ("shh", ""), ("are", "are"), ("the", "e"), ("", "")],
)  # fmt: skip
def test_endings(word, ending):
    assert spelled(word) == ending


def test_words_that_rhyme():
    words = ["light", "Night", "night", "day", "bright", "light"]
    assert rhyming("night", words) == ["light", "bright"] and rhyming("shh", ["shh", "pss"]) == []
    assert rhyming("one", ["sun", "bone"], sound={"one": "UN", "sun": "UN", "bone": "ON"}.get) == ["sun"]
    assert (
        last_word("and so, \u201cgood-bye!\u201d") == "bye"
        and last_word("I don't") == "don't"
        and last_word("--") == ""
    )
    assert rhyme_bias(["sun"], 2.0) == {" sun": 2.0, " sun\n": 2.0}


def test_what_is_measured():
    text = "the night\nis bright\n\nthe day\nis night\nalone"
    assert rhymed_share(text) == 0.5 and rhymed_share("") == 0 and line_lengths(text) == [9, 9, 7, 8, 5]


@pytest.fixture(scope="module")
def lm():
    text = "the night is day\nthe light is bright\nthe way is white\n" * 9
    tokenizer = train_bpe([text], 300)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.1
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)


def test_second_lines_are_led_to_rhymes(lm):
    options = {"words": ["night", "light", "bright", "day", "way"], "suppress_tokens": [lm.tokenizer.end_of_text]}
    options |= {"pairs": 1, "max_new_tokens": 12, "seed": 3}
    led = couplets(lm, "the night", bias=30.0, sound=lambda word: "all", candidates=2, **options)
    assert led.startswith("the night") and len(line_lengths(led)) == led.count("\n") == 2
    assert rhymed_share(led, lambda word: "all") == 1
    assert all(last_word(line) in options["words"] for line in led.split("\n")[1::2])
    free = couplets(lm, "the night", bias=0.0, sound=lambda word: "all", candidates=1, **options)
    assert not all(last_word(line) in options["words"] for line in free.split("\n")[1::2])


def test_numbers_out_of_range(lm):
    for name in ("pairs", "candidates"):
        with pytest.raises(InputError, match=f"{name} is 0; it must be at least 1"):
            couplets(lm, words=["a"], **{name: 0})

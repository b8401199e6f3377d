import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax import InputError
from gpt2_jax.generation.stopping import START, cut, held_back, stop_table
from gpt2_jax.tokenizer_training import train_bpe

TOKENIZER = train_bpe(["abab abcab ab\n\nab ü aab caab baba " * 20], 280)
texts = st.text("abc \nü", max_size=30)
stops = st.lists(st.text("ab \nü", min_size=1, max_size=4), min_size=1, max_size=3)


def first_complete(tokens, table):
    """How many tokens it takes until a stop string is complete, or None."""
    state = START
    for n, token in enumerate(tokens, 1):
        state = table[state, token]
        if state == len(table) - 1:
            return n
    return None


@settings(max_examples=300, deadline=None)
@given(texts, stops, st.randoms())
def test_a_stop_string_is_found_at_the_token_that_completes_it_whatever_the_boundaries(text, stop_strings, random):
    table = stop_table(stop_strings, TOKENIZER, 300)
    tokens = TOKENIZER.encode(text)
    if random.random() < 0.5:  # the same text in other tokens
        tokens = [token for character in text for token in TOKENIZER.encode(character)]
    seen = [any(s.encode() in spelled(tokens[:n]) for s in stop_strings) for n in range(1, len(tokens) + 1)]
    assert first_complete(tokens, table) == (seen.index(True) + 1 if True in seen else None)


def spelled(tokens):
    return b"".join(map(TOKENIZER.spelling, tokens))


def test_a_complete_stop_string_stays_complete_and_special_tokens_are_nothing():
    table = stop_table(["ab"], TOKENIZER, 300)
    assert (table[-1] == len(table) - 1).all()
    a = table[START, TOKENIZER.encode("a")[0]]
    assert a != START and table[a, TOKENIZER.end_of_text] == a


@settings(deadline=None)
@given(texts, stops)
def test_a_text_is_cut_before_its_first_stop_string(text, stop_strings):
    kept = cut(text, stop_strings)
    assert text.startswith(kept) and not any(s in kept for s in stop_strings)
    assert kept == text or any(text[len(kept) :].startswith(s) for s in stop_strings)


@settings(deadline=None)
@given(texts, texts, stops)
def test_what_is_shown_never_turns_out_to_belong_to_a_stop_string(text, more, stop_strings):
    if any(s in text for s in stop_strings):
        return
    shown = text[: len(text) - held_back(text, stop_strings)]
    assert cut(text + more, stop_strings).startswith(shown)


def test_wrong_stop_strings():
    with pytest.raises(InputError, match="stop_strings has an empty string, which would stop everything"):
        stop_table(["a", ""], TOKENIZER, 300)
    with pytest.raises(InputError, match="stop_strings have 40,000 bytes together; at most 32,000 are allowed"):
        stop_table(["ab" * 20_000], TOKENIZER, 300)


def test_other_strings_have_the_same_number_of_states():
    shapes = {stop_table([s], TOKENIZER, 300).shape for s in ("abcd", "xyz12", "äöü")}
    assert shapes == {(8, 300)}
    assert stop_table(["ab"], TOKENIZER, 300).dtype == np.int16

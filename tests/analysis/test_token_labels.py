import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_jax import InputError
from gpt2_jax.analysis.token_labels import drawable, label, labels, running_text, shortened, spaced, tokens_of
from gpt2_jax.language_model import Generation
from gpt2_jax.tokenizer_training import train_bpe

TOKENIZER = train_bpe(["to be or not to be"], 265)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (" the", "␣the"),
        ("\n    ", "⏎␣␣␣␣"),
        ("\t\r\x00\x1b\x7f", "⇥⟨CR⟩⟨NUL⟩⟨ESC⟩⟨DEL⟩"),
        ("été 中😀", "été␣中😀"),
        ("\u00a0\u200b\u202e\x85\ue000", r"\u00a0\u200b\u202e\u0085\ue000"),
        ("\\n ␣⏎⇥⟨⟩", r"\\n␣\u2423\u23ce\u21e5\u27e8\u27e9"),
        ("\u0301", "◌\u0301"),
        ("e\u0301\u0302", "e\u0301\u0302"),
        (" \u0301", "␣◌\u0301"),
        ("<b>&$x$", "<b>&$x$"),
    ],
)
def test_what_cannot_be_seen_has_a_sign(text, wanted):
    assert label(text.encode()) == wanted


def test_bytes_that_are_no_whole_character_are_told_from_the_characters_of_their_numbers():
    assert label("中".encode()[:2]) == r"\xe4\xb8" and label(b" \xe2") == r"␣\xe2"
    assert label(b"\x85") == r"\x85" != label("\x85".encode())


@given(st.binary(max_size=8), st.binary(max_size=8))
def test_no_two_spellings_have_one_label_and_all_are_printable(one, other):
    assert (label(one) == label(other)) == (one == other)
    assert label(one).isprintable()
    assert spaced(label(one)).replace("⏎\n", "⏎").replace("⇥\t", "⇥").replace(" ", "␣") == label(one)


def test_in_running_text_characters_of_several_tokens_are_whole():
    tokenizer = TOKENIZER
    running = lambda text: running_text(tokenizer, tokenizer.encode(text) if isinstance(text, str) else text)
    assert running("be…s 😀\n") == ["be", "·", "·", "…", "s", "␣", "·", "·", "·", "😀", "⏎"]
    broken = [*tokenizer.encode("…")[:2], tokenizer.end_of_text, *tokenizer.encode(" be"), len(tokenizer)]
    shown = running(broken)
    assert shown[:3] == [r"\xe2", r"\x80", "<|endoftext|>"] and "".join(shown[3:-1]) == "␣be"
    assert shown[-1] == f"⟨id {len(tokenizer)}⟩" and running([]) == []


@given(st.text(max_size=8))
def test_running_text_is_the_text(text):
    shown = "".join(running_text(TOKENIZER, TOKENIZER.encode(text)))
    assert re.sub("[◌·]", "", shown) == re.sub("[◌·]", "", label(text.encode()))


def test_special_tokens_go_by_name_and_ids_without_a_token_by_number():
    tokenizer = TOKENIZER.with_special_tokens(["<|poetry|>"])
    tokens = [*tokenizer.encode(" be"), tokenizer.end_of_text, tokenizer.control_codes["poetry"], len(tokenizer) + 3]
    assert labels(tokenizer, tokens)[-3:] == ["<|endoftext|>", "<|poetry|>", f"⟨id {len(tokenizer) + 3}⟩"]
    assert "".join(labels(tokenizer, tokens)[:-3]) == "␣be"


def test_what_the_font_lacks_is_drawn_as_its_number():
    assert drawable("␣⏎⇥⟨ESC⟩été…◌\\") == "␣⏎⇥⟨ESC⟩été…◌\\"
    assert drawable("中\u3000🫠") == r"\u4e2d\u3000\U0001fae0"


def test_long_labels_are_cut():
    assert shortened("abcdef", 6) == "abcdef" and shortened("abcdefg", 6) == "abcde…"


def test_texts_ids_and_generations_are_tokens(tiny_lm):
    ids = tiny_lm.tokenizer.encode("ab\n")
    assert tokens_of(tiny_lm, "ab\n").tolist() == tokens_of(tiny_lm, ids).tolist() == ids
    assert tokens_of(tiny_lm, Generation("ab\n", "\n", np.array(ids), "length")).tolist() == ids
    assert tokens_of(tiny_lm, "").shape == tokens_of(tiny_lm, []).shape == (0,)


def test_what_is_no_text_is_refused(tiny_lm):
    with pytest.raises(InputError, match=r"the text is int64\[1, 2\]; it must be text, token ids or a Generation"):
        tokens_of(tiny_lm, [[1, 2]])
    with pytest.raises(InputError, match=r"the text is float64\[1\]; it must be text, token ids"):
        tokens_of(tiny_lm, [0.5])
    with pytest.raises(
        InputError, match=r"the text has token id 101; ids must be from 0 to 100: encode it with lm.tok"
    ):
        tokens_of(tiny_lm, [5, 101])
    with pytest.raises(InputError, match=r"the text has token id -1; ids must be from 0 to 100"):
        tokens_of(tiny_lm, [-1])

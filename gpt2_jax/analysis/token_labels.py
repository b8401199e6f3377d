"""Tokens for the eye: which a text has, and a label for each that is readable, printable and like no other's.

A label is the token's text as it is, but for what nobody could see or tell apart: "␣" is a space, "⏎" a line break, "⇥"
a tab, "\\xe2" a byte that is no whole character, "\\u200b" a character without a shape, "⟨ESC⟩" a control character, a
special token its name. A backslash and these signs themselves, where a text has them, are escaped.
"""

import functools
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.language_model import Generation, LanguageModel
from gpt2_jax.tokenizer import Tokenizer

Text = str | Sequence[int] | np.ndarray | Generation
SPACE, LINE_BREAK, TAB = "␣", "⏎", "⇥"
CONTINUED = "·"  # in running text, a part of a character that the next token completes
FONT = "DejaVu Sans Mono"  # which comes with matplotlib
# Of ASCII, https://www.unicode.org/charts/PDF/U0000.pdf
CONTROL = (
    "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US"
)
_SIGNS = {
    **{chr(i): f"⟨{name}⟩" for i, name in enumerate(CONTROL.split())},
    **{" ": SPACE, "\n": LINE_BREAK, "\t": TAB, "\x7f": "⟨DEL⟩", "\\": "\\\\"},
}
_TAKEN = frozenset(f"{SPACE}{LINE_BREAK}{TAB}⟨⟩◌")


def tokens_of(lm: LanguageModel, text: Text) -> np.ndarray:
    """Int32 [T] ids of a text (of what `generate` would read), of ids themselves, or of a `Generation`; "" is no token.

    Raises:
      InputError: what is neither, or ids outside the vocabulary.
    """
    if isinstance(text, str):
        return np.array(lm.tokenizer.encode(text), np.int32)
    ids = np.asarray(text.tokens if isinstance(text, Generation) else text)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise InputError(f"the text is {ids.dtype}{list(ids.shape)}; it must be text, token ids or a Generation")
    bad = ids[(ids < 0) | (ids >= lm.config.vocab_size)]
    if bad.size:
        raise InputError(
            f"the text has token id {bad[0]}; ids must be from 0 to {lm.config.vocab_size - 1}: encode it with "
            "lm.tokenizer"
        )
    return ids.astype(np.int32)


def labels(tokenizer: Tokenizer, tokens: Iterable[int]) -> list[str]:
    """The label of each token; "⟨id 300⟩" of one that the model has and the tokenizer has not."""
    return [_label(tokenizer, int(token)) for token in tokens]


def label(spelling: bytes) -> str:
    """The label of a token that adds `spelling` to a text."""
    return _of_characters(spelling.decode(errors="surrogateescape"))


def running_text(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """The label of each token within the text of all: a character of several tokens is in the last of them, whole.

    The others have "·" in its place. Bytes that come to no character stay "\\xe2".
    """
    spellings = [tokenizer.spelling(int(i)) if i < len(tokenizer) else b"" for i in tokens]
    ends, end = np.cumsum([len(spelling) for spelling in spellings]), 0
    characters, continued = [""] * len(tokens), [""] * len(tokens)
    for character in b"".join(spellings).decode(errors="surrogateescape"):
        start, end = end, end + len(character.encode(errors="surrogateescape"))
        first, last = np.searchsorted(ends, (start, end - 1), side="right")  # the tokens of its first and last byte
        characters[last] += character
        continued[first:last] = [CONTINUED] * (last - first)
    return [
        _of_characters(of_token) + rest if spelling else name
        for of_token, rest, spelling, name in zip(characters, continued, spellings, labels(tokenizer, tokens))
    ]


def spaced(label: str) -> str:
    """A label with its white space as a text has it; line breaks and tabs keep their signs before them."""
    return label.replace(SPACE, " ").replace(LINE_BREAK, LINE_BREAK + "\n").replace(TAB, TAB + "\t")


def drawable(label: str) -> str:
    """A label for matplotlib, in `FONT`: characters that it lacks are escaped as "\\u4e2d"."""
    return "".join(c if ord(c) in _glyphs() else _escaped(c) for c in label)


def shortened(label: str, longest: int) -> str:
    """A label of at most `longest` characters, "…" in the place of what is cut off."""
    return label if len(label) <= longest else label[: longest - 1] + "…"


def _label(tokenizer: Tokenizer, token: int) -> str:
    if token >= len(tokenizer):
        return f"⟨id {token}⟩"
    return label(tokenizer.spelling(token)) or tokenizer.decode([token], skip_special=False)


def _of_characters(characters: str) -> str:
    parts, carries = [], False  # whether the character before can carry a combining mark
    for character in characters:
        kind = unicodedata.category(character)[0]
        parts.append("◌" + character if kind == "M" and not carries else _visible(character))
        carries = kind in "LMN"
    return "".join(parts)


def _visible(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that did not decode
        return f"\\x{code - 0xDC00:02x}"
    if character in _SIGNS:
        return _SIGNS[character]
    return character if character.isprintable() and character not in _TAKEN else _escaped(character)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@functools.cache
def _glyphs() -> frozenset[int]:
    from matplotlib import font_manager  # not at the top: labels alone need no matplotlib

    return frozenset(font_manager.get_font(font_manager.findfont(FONT)).get_charmap())

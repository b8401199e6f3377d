"""Text to token ids and back: GPT-2's byte-level BPE, a BPE or a character vocabulary of one's own.

Every token stands for fixed bytes, so decoding is joining them: exact, and streamable without looking back. Only what
`allow_special` names a special token may become one: the literal "<|endoftext|>" in a corpus is text.
"""

import codecs
import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models

from gpt2_jax import json_files
from gpt2_jax.errors import InputError, one_line, shown

END_OF_TEXT = "<|endoftext|>"
PIECE_CHARACTERS = 2**18
_LINE_START = re.compile(r"(?<=\S\n)(?=\S)")


def control_code(name: str) -> str:
    """The special token that begins texts of a kind: "<|poetry|>"."""
    return f"<|{name}|>"


class Tokenizer:
    """A `tokenizers.Tokenizer` whose tokens are bytes ("bpe") or characters ("characters"), see `kind`.

    Args:
      tokenizer: byte-level BPE, or a vocabulary of single characters as `train_characters` makes; it must hold
        "<|endoftext|>". Its padding and truncation are switched off.
      name: what errors call it.

    Raises:
      InputError: no tokens, no end-of-text, ids with gaps, or another kind of tokens.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, name: str = "this tokenizer"):
        vocabulary = tokenizer.get_vocab()
        if END_OF_TEXT not in vocabulary:
            raise InputError(
                f"{name} has {len(vocabulary)} entries and no {END_OF_TEXT!r}, which separates documents; use GPT-2's"
                " or train one (--config.data.tokenizer=bpe)"
            )
        if len(vocabulary) == 1:
            raise InputError(f"{name} is empty: {END_OF_TEXT!r} is its only entry; its vocabulary file was not read")
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):  # before anything is as long as the largest
            raise InputError(
                f"{name} has {len(vocabulary):,} entries, and their ids do not go from 0 to {len(vocabulary) - 1:,}, "
                "each once; fetch it again"
            )
        added = set(tokenizer.get_added_tokens_decoder()) | {vocabulary[END_OF_TEXT]}
        single = all(len(token) == 1 for token, i in vocabulary.items() if i not in added)
        byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
        if not isinstance(tokenizer.model, models.BPE):
            raise InputError(
                f"{name} has a {type(tokenizer.model).__name__} model; only BPE and vocabularies of single characters "
                "are supported"
            )
        if not byte_level and not (single and isinstance(tokenizer.decoder, decoders.Fuse)):
            raise InputError(
                f"{name} has a {type(tokenizer.decoder).__name__} decoder; only byte-level BPE, as GPT-2's, and"
                " vocabularies of single characters, as train_characters makes, are supported"
            )
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.add_special_tokens([END_OF_TEXT])
        tokenizer.encode_special_tokens = True
        self.kind = "bpe" if byte_level else "characters"
        self.end_of_text: int = vocabulary[END_OF_TEXT]
        self._tokenizer, self._name = tokenizer, name

        self._special = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, self._special)) + ")")
        self._characters = None if byte_level else {token for token, i in vocabulary.items() if i not in added}
        self._bytes = [b""] * (max(vocabulary.values()) + 1)
        byte_of = _byte_of_symbol()
        if byte_level and (missing := sorted(byte_of.keys() - vocabulary.keys())):
            raise InputError(
                f"{name} lacks {len(missing)} of the 256 bytes, {shown(missing[0])} among them, and would leave them "
                "out of every text; fetch it again"
            )
        for token, i in vocabulary.items():
            symbols = byte_level and i not in added and byte_of.keys() >= set(token)
            self._bytes[i] = bytes(byte_of[symbol] for symbol in token) if symbols else token.encode()
        self._text_bytes = list(self._bytes)
        for i in self._special.values():
            self._text_bytes[i] = b""

    def __len__(self) -> int:
        """Entries of the vocabulary, end-of-text among them; every id is below it."""
        return len(self._bytes)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The token ids of `text`; with `allow_special`, "<|endoftext|>" in it is that token instead of its letters.

        Raises:
          InputError: a character that the vocabulary of characters lacks, or half of a surrogate pair.
        """
        if not allow_special:
            return self.encode_batch([text])[0]
        return [
            i for part in self.split_special(text) for i in ([part] if isinstance(part, int) else self.encode(part))
        ]

    def split_special(self, text: str) -> list[str | int]:
        """The special tokens that `text` spells, as ids, and the text between them."""
        return [self._special.get(part, part) for part in self._special_pattern.split(text) if part]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        for text in texts:
            self.check(text)
        with failures_explained(f"{self._name} fails to encode a text"):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def check(self, text: str) -> None:
        """Raises `InputError` for a text that `encode` refuses."""
        if self._characters is not None and (unknown := set(text) - self._characters):
            at = min(map(text.index, unknown))
            raise InputError(
                f"the character {text[at]!r} (U+{ord(text[at]):04X}) at position {at} is not among the"
                f" {len(self._characters)} characters of this tokenizer; remove it, or train a tokenizer on text that"
                " has it ('bpe' encodes every character)"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text has half of a surrogate pair, {text[error.start]!r}, at position {error.start}; it is not"
                " Unicode text: remove it"
            ) from None

    def with_special_tokens(self, names: Iterable[str]) -> "Tokenizer":
        """This tokenizer with more special tokens after its own entries; those that it has stay where they are."""
        copy = tokenizers.Tokenizer.from_str(self.to_json())
        copy.add_special_tokens([name for name in names if name not in self._special])
        return Tokenizer(copy)

    @property
    def control_codes(self) -> dict[str, int]:
        """The ids of the control codes by their names: {"poetry": 50257} of "<|poetry|>"."""
        names = {name[2:-2]: i for name, i in self._special.items() if name != END_OF_TEXT}
        return {name: i for name, i in names.items() if control_code(name) in self._special}

    def extends(self, other: "Tokenizer") -> bool:
        """Whether all entries of `other` have the same ids here; there may be more after them."""
        mine, theirs = self._tokenizer.get_vocab(), other._tokenizer.get_vocab()
        return self.kind == other.kind and mine.items() >= theirs.items()

    def decode(self, tokens: Sequence[int] | np.ndarray, *, skip_special: bool = True) -> str:
        """The text of `tokens` (any integer sequence or array [T]); bytes that are not UTF-8 become U+FFFD."""
        return self._join(tokens, skip_special).decode(errors="replace")

    def spelling(self, token: int) -> bytes:
        """The bytes that `token` adds to a text; none for special tokens."""
        return self._text_bytes[token]

    def stream_decoder(self, *, skip_special: bool = True) -> "StreamDecoder":
        """A decoder that is given tokens as they come."""
        return StreamDecoder(self, skip_special)

    def to_json(self) -> str:
        """The text of a `tokenizer.json`, which transformers and tokenizers also read."""
        return self._tokenizer.to_str()

    @classmethod
    def from_json(cls, text: str, name: str = "this tokenizer") -> "Tokenizer":
        """Reads what `to_json` wrote."""
        with failures_explained(f"{name} is not a tokenizer.json"):
            tokenizer = tokenizers.Tokenizer.from_str(text)
            added = {token["content"]: token["id"] for token in json_files.parse(text.encode())["added_tokens"]}
        vocabulary = tokenizer.get_vocab()
        for token, i in added.items():  # the library gives ids of its own to those that do not come next
            if vocabulary.get(token) != i:
                raise InputError(
                    f"{name} gives {shown(token)} the id {i}, and it would be {vocabulary.get(token)}: its ids have "
                    "gaps, or one comes twice; fetch it again"
                )
        return cls(tokenizer, name)

    def save(self, path: str | Path) -> Path:
        """Writes `tokenizer.json` at `path`, or in it when it has no suffix (a folder, made if absent)."""
        path = Path(path)
        path = path if path.suffix else path / "tokenizer.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    def _join(self, tokens: Sequence[int] | np.ndarray, skip_special: bool) -> bytes:
        ids = np.asarray(tokens)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise InputError(f"tokens are {ids.dtype} of shape {ids.shape}; decoding takes one sequence of integers")
        wrong = ids[(ids < 0) | (ids >= len(self))]
        if wrong.size:
            raise InputError(f"token {wrong[0]} is not in the vocabulary, whose ids go from 0 to {len(self) - 1}")
        table = self._text_bytes if skip_special else self._bytes
        return b"".join([table[i] for i in ids.tolist()])


class StreamDecoder:
    """Text of tokens that arrive one by one or in groups; what it gives is final, never half a character.

    All that `put` and `end` return, joined, is `Tokenizer.decode` of all the tokens.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool):
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def put(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text that `tokens` complete; a character whose last byte is yet to come waits."""
        return self._utf8.decode(self._tokenizer._join(tokens, self._skip_special))

    def end(self) -> str:
        """What waits, U+FFFD for a character that never got its last byte; the next `put` begins a new text."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def pieces(text: str, characters: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cuts a long text into pieces that encode to the same tokens as the whole, to bound memory and use all cores.

    A piece ends at the first line break past `characters` that has no other white space around it: GPT-2's
    pre-tokenizer always divides there.
    """
    start = 0
    while cut := _LINE_START.search(text, start + max(1, characters)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


@contextlib.contextmanager
def failures_explained(what: str) -> Iterator[None]:
    """Turns what the Rust libraries raise into an `InputError` that begins with `what`."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # they raise nothing narrower, and their panics are no `Exception`
        raise InputError(f"{what}: {one_line(error)}") from None


def _byte_of_symbol() -> dict[str, int]:
    """GPT-2's printable stand-ins of the 256 bytes: themselves where printable, else U+0100 and up in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}

"""Documents to tokens: the one transform of every road, from a part of a corpus to shards of bytes.

A document's tokens are its control code if there is one, its prompt, its text, and end-of-text; prompt and
text are encoded apart. Shards are named by part, so that who encodes which part, and when, changes no byte.
"""

import dataclasses
import functools
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from gpt2_jax.data.documents import Document, Part
from gpt2_jax.tiktoken_encoding import tiktoken_encoder
from gpt2_jax.tokenizer import Tokenizer, pieces

SPLITS = ("train", "validation")
BATCH_CHARACTERS = 2**22


class Encoded(NamedTuple):
    """A document as tokens.

    Attributes:
      tokens: int32 [n].
      learnt: bool [n], False for the prompt's; None is True for all.
    """

    tokens: np.ndarray
    learnt: np.ndarray | None

    @property
    def mask(self) -> np.ndarray:
        """`learnt`, spelled out."""
        return np.ones(len(self.tokens), bool) if self.learnt is None else self.learnt


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How documents become tokens; can be pickled.

    Attributes:
      tokenizer: the text of a tokenizer.json.
      encoder: "tokenizers", or "tiktoken" with the same ids.
      controls: the ids that begin documents, by `Document.control`; empty for none.
      control_dropout: share of the documents that go without.
      allow_special: take the special tokens that a text spells for these tokens.
    """

    tokenizer: str
    encoder: Literal["tokenizers", "tiktoken"] = "tokenizers"
    controls: Mapping[str, int] = dataclasses.field(default_factory=dict)
    control_dropout: float = 0.0
    allow_special: bool = False

    def encode(self, documents: Iterable[Document], batch_characters: int | None = None) -> Iterator[Encoded]:
        """The tokens of each document in turn; encoded in batches of so many characters, on all cores."""
        batch_characters = batch_characters or BATCH_CHARACTERS
        batch: list[Document] = []
        characters = 0
        for document in documents:
            batch.append(document)
            characters += len(document.text) + len(document.prompt)
            if characters >= batch_characters:
                yield from self._encode_batch(batch)
                batch, characters = [], 0
        yield from self._encode_batch(batch)

    @property
    def end_of_text(self) -> int:
        """The id that ends a document."""
        return _encoder(self.tokenizer, self.encoder)[0].end_of_text

    def size(self, document: Document) -> int:
        """UTF-8 bytes of what is learnt of a document; special tokens have none."""
        if not self.allow_special:
            return len(document.text.encode())
        return sum(len(piece.encode()) for piece in self._pieces(document.text) if isinstance(piece, str))

    def _encode_batch(self, batch: list[Document]) -> Iterator[Encoded]:
        tokenizer, encode = _encoder(self.tokenizer, self.encoder)
        cut = [[self._pieces(text) for text in (document.prompt, document.text)] for document in batch]
        texts = [piece for prompt, text in cut for piece in (*prompt, *text) if isinstance(piece, str)]
        encoded = iter(encode(texts))
        for document, (prompt, text) in zip(batch, cut):
            ids = [next(encoded) if isinstance(piece, str) else [piece] for piece in (*prompt, *text)]
            first = [*self._control(document), *ids[: len(prompt)]]
            tokens = np.concatenate(
                [*first, *ids[len(prompt) :], [tokenizer.end_of_text]], dtype=np.int32, casting="unsafe"
            )
            learnt = np.arange(len(tokens)) >= sum(map(len, first)) if prompt else None
            yield Encoded(tokens, learnt)

    def _control(self, document: Document) -> list[list[int]]:
        """The control code of a document, unless it goes without: a matter of the document alone."""
        if not self.controls or (self.control_dropout and _hash(document, 1) < self.control_dropout * 2**64):
            return []
        return [[self.controls[document.control]]]

    def _pieces(self, text: str) -> list[str | int]:
        """What is encoded apart: pieces of the text, and ids of special tokens."""
        parts = [text] if text else []
        if self.allow_special:
            parts = _encoder(self.tokenizer, self.encoder)[0].split_special(text)
        return [piece for part in parts for piece in (pieces(part) if isinstance(part, str) else [part])]


@functools.lru_cache(maxsize=4)
def _encoder(tokenizer: str, encoder: str) -> tuple[Tokenizer, Callable[[list[str]], list[Sequence[int] | np.ndarray]]]:
    """The tokenizer, and what encodes a batch of texts by it."""
    loaded = Tokenizer.from_json(tokenizer)
    return loaded, tiktoken_encoder(loaded) if encoder == "tiktoken" else loaded.encode_batch


@dataclasses.dataclass(frozen=True)
class Division:
    """Which text trains and which validates.

    Attributes:
      kind: "document" or "tail".
      boundary: "document": the largest `document_hash` that validates; "tail": characters that train.
    """

    kind: Literal["document", "tail"]
    boundary: int

    @classmethod
    def by_hash(cls, fraction: float) -> "Division":
        """Documents whose hash is in the lowest `fraction` of all hashes validate: no corpus need be read for it."""
        return cls("document", int(fraction * 2**64))

    def validates(self, document: Document) -> bool:
        """Of "document": whether it validates."""
        return document_hash(document) <= self.boundary

    def divide(self, document: Document, position: int) -> Iterator[tuple[str, Document, bool]]:
        """The split, the document or what a tail's cut leaves of it, and whether the document ends with it.

        Args:
          position: characters of the corpus before it.
        """
        text = document.text
        if self.kind == "document":
            cut = 0 if self.validates(document) else len(text)
        else:
            cut = min(max(self.boundary - position, 0), len(text))
        if cut == len(text):
            yield "train", document, True
        elif cut == 0:
            yield "validation", document, True
        else:
            yield "train", dataclasses.replace(document, text=text[:cut]), False
            yield "validation", dataclasses.replace(document, text=text[cut:], prompt=""), True


def document_hash(document: Document) -> int:
    """The first 64 bits of the text's sha256: where a document goes depends on nothing but itself."""
    return _hash(document, 0)


def _hash(document: Document, number: int) -> int:
    """The `number`th 64 bits of the text's sha256; they know nothing of each other."""
    digest = hashlib.sha256(document.text.encode())
    if document.prompt:
        digest.update(b"\0" + document.prompt.encode())
    return int.from_bytes(digest.digest()[8 * number : 8 * number + 8])


@dataclasses.dataclass(frozen=True)
class Task:
    """All that is needed to turn a part into token shards, anywhere; can be pickled.

    Attributes:
      part, number: what, and where it stands in the corpus.
      encoding, division: how.
      position: characters of the corpus before the part.
      duplicates: rows, as they come with documents, of those that an earlier one equals.
      dtype: of the tokens, "<u2" or "<u4".
      tokens_per_shard: at most.
      masked: write which tokens are learnt, too.
    """

    part: Part
    number: int
    encoding: Encoding
    division: Division
    position: int
    duplicates: frozenset[int]
    dtype: str
    tokens_per_shard: int
    masked: bool

    def divided(self, counts: Counter) -> Iterator[tuple[str, Document, bool]]:
        """What `Division.divide` gives of each document."""
        position = self.position
        for row, document in self.part.documents(0, counts):
            if row in self.duplicates:
                counts["kept"] -= 1
                counts["duplicate"] += 1
                continue
            yield from self.division.divide(document, position)
            position += len(document.text)


def encode_part(task: Task, write: Callable[[str, bytes], None]) -> dict[str, Any]:
    """Encodes a part and writes its shards.

    Args:
      task: what to do.
      write: stores a file under a name, complete or not at all: `train-00003-00000.bin` (tokens) and, with
        `task.masked`, `train-00003-00000.mask` (a bit a token, first the highest, 1 where it is learnt).

    Returns:
      What the manifest has of the part: `{"counts": {reason: n}, "splits": {split: {"documents", "tokens", "learnt",
      "bytes", "largest", "shards": [{"file", "tokens", "sha256", "mask"}]}}}`; "largest" is the largest id, "bytes"
      those of the text that is learnt, in UTF-8.
    """
    counts: Counter = Counter()
    writer = PartWriter(task, write)

    def documents() -> Iterator[Document]:
        for split, document, ends in task.divided(counts):
            writer.expect(split, document, ends)
            yield document

    for encoded in task.encoding.encode(documents()):
        writer.add(encoded)
    return writer.finish(counts)


class PartWriter:
    """The shards of a part, of whose documents each is told before it is encoded, and given after that."""

    def __init__(self, task: Task, write: Callable[[str, bytes], None]):
        self._encoding = task.encoding
        self._writers = {split: _ShardWriter(task, split, write) for split in SPLITS}
        self._expected: deque[tuple[str, int, bool]] = deque()

    @property
    def waiting(self) -> int:
        """Documents that were told and not yet given."""
        return len(self._expected)

    def expect(self, split: str, document: Document, ends: bool = True) -> None:
        """Tells of the next document; see `Division.divide`."""
        self._expected.append((split, self._encoding.size(document), ends))

    def add(self, encoded: Encoded) -> None:
        """Takes the tokens of the document that was told of first."""
        split, size, ends = self._expected.popleft()
        written = slice(None if ends else -1)  # without end-of-text where the document goes on in the other split
        learnt = None if encoded.learnt is None else encoded.learnt[written]
        self._writers[split].add(Encoded(encoded.tokens[written], learnt), size)

    def finish(self, counts: Counter) -> dict[str, Any]:
        """Writes what is left; returns what `encode_part` does."""
        splits = {split: writer.finish() for split, writer in self._writers.items()}
        return {"counts": dict(sorted(counts.items())), "splits": splits}


class _ShardWriter:
    """Cuts the tokens of one split of a part into shards."""

    def __init__(self, task: Task, split: str, write: Callable[[str, bytes], None]):
        self.task, self.split, self.write = task, split, write
        self.tokens: list[np.ndarray] = []
        self.learnt: list[np.ndarray] = []
        self.waiting = 0
        self.entry: dict[str, Any] = {
            "documents": 0, "tokens": 0, "learnt": 0, "bytes": 0, "largest": -1, "shards": []
        }  # fmt: skip

    def add(self, encoded: Encoded, size: int) -> None:
        entry, tokens = self.entry, encoded.tokens
        entry["documents"] += 1
        entry["learnt"] += len(tokens) if encoded.learnt is None else int(encoded.learnt.sum())
        entry["bytes"] += size
        entry["largest"] = max(entry["largest"], int(tokens.max(initial=-1)))
        self.tokens.append(tokens.astype(self.task.dtype))
        if self.task.masked:
            self.learnt.append(encoded.mask)
        self.waiting += len(tokens)
        if self.waiting >= self.task.tokens_per_shard:
            self._write_full()

    def _write_full(self) -> None:
        tokens, learnt = self._joined()
        size = self.task.tokens_per_shard
        full = len(tokens) // size * size
        for start in range(0, full, size):
            self._write(tokens[start : start + size], learnt[start : start + size])
        self.tokens, self.learnt, self.waiting = [tokens[full:]], [learnt[full:]], len(tokens) - full

    def _joined(self) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(self.tokens), np.concatenate(self.learnt) if self.learnt else np.empty(0, bool)

    def _write(self, tokens: np.ndarray, learnt: np.ndarray) -> None:
        shards = self.entry["shards"]
        stem = f"{self.split}-{self.task.number:05d}-{len(shards):05d}"
        data = tokens.tobytes()
        self.write(f"{stem}.bin", data)
        shard = {"file": f"{stem}.bin", "tokens": len(tokens), "sha256": hashlib.sha256(data).hexdigest()}
        if self.task.masked:
            mask = np.packbits(learnt).tobytes()
            self.write(f"{stem}.mask", mask)
            shard["mask"] = hashlib.sha256(mask).hexdigest()
        shards.append(shard)
        self.entry["tokens"] += len(tokens)

    def finish(self) -> dict[str, Any]:
        if self.waiting:
            self._write(*self._joined())
        return self.entry

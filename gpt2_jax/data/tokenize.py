"""Documents to token shards on disk, with a manifest that says what they are.

A prepared folder holds `train-00000.bin`, ..., `validation-00000.bin`, ... (little-endian uint16, or uint32 for more
than 65,536 entries), `tokenizer.json`, and `manifest.json`, which is written last. Documents end with end-of-text.
"""

import dataclasses
import hashlib
import heapq
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_jax.config import DataConfig
from gpt2_jax.data.sources import Source, open_source
from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer import Tokenizer, load, pieces, train_bpe, train_characters

VERSION = 1
SPLITS = ("train", "validation")
FEW_DOCUMENTS = 20
BATCH_CHARACTERS = 4_000_000


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared folder.

    Attributes:
      directory: where it is.
      manifest: what `manifest.json` says.
      tokenizer: of its tokens.
    """

    directory: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer

    def shards(self, split: str) -> list[np.memmap]:
        """The shards of "train" or "validation" in order, memory-mapped, each [tokens] of uint16 or uint32."""
        return [np.memmap(self.directory / shard["file"], self.manifest["dtype"], "r") for shard in self._shards(split)]

    def count(self, split: str) -> int:
        """Tokens of a split, end-of-texts among them."""
        return sum(shard["tokens"] for shard in self._shards(split))

    def bytes_per_token(self, split: str) -> float:
        """Bytes of UTF-8 text a token: a loss in nats a token / (ln 2 x this) is in bits a byte."""
        return self.manifest["splits"][split]["bytes"] / self.count(split)

    def verify(self) -> None:
        """Reads every shard; raises `InputError` naming the first whose sha256 is not the manifest's."""
        for split in SPLITS:
            for shard in self._shards(split):
                _check_shard(self.directory / shard["file"], shard)

    def _shards(self, split: str) -> list[dict[str, Any]]:
        return self.manifest["splits"][split]["shards"]


def load_prepared(directory: Path) -> Prepared:
    """Opens a folder that `prepare` has finished.

    Raises:
      InputError: there is no manifest, or a shard has not the size it says.
    """
    manifest = _read_json(directory / "manifest.json")
    if manifest is None:
        raise InputError(f"{directory} has no manifest.json: it was never finished; run prepare again")
    for split in SPLITS:
        for shard in manifest["splits"][split]["shards"]:
            file = directory / shard["file"]
            size = shard["tokens"] * np.dtype(manifest["dtype"]).itemsize
            if not file.is_file() or file.stat().st_size != size:
                raise InputError(f"{file} should have {size} bytes by the manifest; delete {directory} to make it anew")
    return Prepared(directory, manifest, load(directory / "tokenizer.json"))


def prepare(config: DataConfig, directory: Path, *, progress: Callable[[str], None] = lambda line: None) -> Prepared:
    """Tokenizes a corpus into `directory`, or opens what is there already; killed midway, it goes on.

    Args:
      config: source, split and tokenizer.
      directory: made if absent.
      progress: is told, in one line each, what is done.

    Raises:
      InputError: a bad source, an empty split, or a folder prepared from other options or another corpus.
    """
    source = open_source(config)
    identity = {"version": VERSION, "options": dataclasses.asdict(config), "fingerprint": source.fingerprint()}
    if (manifest := _read_json(directory / "manifest.json")) is not None:
        _refuse_other(identity, manifest, directory)
        progress(f"data: {directory} is ready")
        return load_prepared(directory)

    directory.mkdir(parents=True, exist_ok=True)
    if (begun := _read_json(directory / "progress.json")) is not None:
        _refuse_other(identity, begun, directory)
    else:
        _write_json(directory / "progress.json", identity)
    progress(f"data: {source.describe()}")
    split = _make_split(source, config)

    tokenizer = _tokenizer(config, source, split, directory)
    dtype = np.dtype("<u2" if len(tokenizer) <= 2**16 else "<u4")
    splits = {}
    for name in SPLITS:
        writer = _ShardWriter(directory, name, dtype, config.tokens_per_shard)
        text_bytes = 0
        for texts, ends in _batches(split.texts(source, name)):
            text_bytes += sum(len(text.encode()) for text in texts)
            for ids, end in zip(tokenizer.encode_batch(texts), ends):
                writer.add([*ids, tokenizer.end_of_text] if end else ids)
        shards = writer.close()
        tokens = sum(shard["tokens"] for shard in shards)
        splits[name] = {"documents": split.documents[name], "tokens": tokens, "bytes": text_bytes, "shards": shards}
        progress(f"data: {name}: {tokens:,} tokens, {text_bytes / tokens:.2f} bytes each")
    described = {"source": source.describe(), "vocab_size": len(tokenizer), "dtype": dtype.str}
    _write_json(directory / "manifest.json", identity | described | {"splits": splits})
    (directory / "progress.json").unlink()
    return load_prepared(directory)


@dataclasses.dataclass(frozen=True)
class _Split:
    """Which part of the corpus is in which split: documents by number, or characters from `cut` on.

    Attributes:
      validation: numbers of the documents that validate; None for a cut.
      cut: the first character that validates, counted over all documents; None for whole documents.
      documents: how many each split has, the one that is cut counted in both.
    """

    validation: frozenset[int] | None
    cut: int | None
    documents: dict[str, int]

    def texts(self, source: Source, name: str) -> Iterator[tuple[str, bool]]:
        """(text, whether it ends a document) for each document, or part of one, in split `name`."""
        start = 0
        for number, document in enumerate(source.documents()):
            if self.validation is not None:
                if (number in self.validation) == (name == "validation"):
                    yield document.text, True
                continue
            cut = min(max(self.cut - start, 0), len(document.text))
            start += len(document.text)
            head, tail = document.text[:cut], document.text[cut:]
            if name == "train" and head:
                yield head, not tail
            if name == "validation" and tail:
                yield tail, True


def _make_split(source: Source, config: DataConfig) -> _Split:
    """Reads the corpus once for its documents' lengths and hashes."""
    sizes, hashes = [], []
    for document in source.documents():
        sizes.append(len(document.text))
        hashes.append(hashlib.sha256(document.text.encode(errors="surrogatepass")).digest())
    fraction, count = config.validation_fraction, len(sizes)
    if config.split == "document" or (config.split == "auto" and count >= FEW_DOCUMENTS):
        wanted = max(1, round(count * fraction))
        if wanted >= count:
            raise InputError(
                f"data.validation_fraction={fraction} of {count} documents leaves none to train on; use "
                "--config.data.split=tail, which cuts inside a document, or more documents"
            )
        # By hash, so that a document stays in its split when others come and go.
        validation = frozenset(heapq.nsmallest(wanted, range(count), key=lambda number: (hashes[number], number)))
        return _Split(validation, None, {"train": count - wanted, "validation": wanted})
    total = sum(sizes)
    cut = int(total * (1 - fraction))
    if not 0 < cut < total:
        raise InputError(
            f"data.validation_fraction={fraction} of {total} characters leaves a split empty; give more text or "
            "another fraction"
        )
    ends = np.cumsum(sizes)
    train = int(np.searchsorted(ends, cut, side="left")) + 1
    return _Split(None, cut, {"train": train, "validation": count - int(np.searchsorted(ends, cut, side="right"))})


def _tokenizer(config: DataConfig, source: Source, split: _Split, directory: Path) -> Tokenizer:
    """The tokenizer of `data.tokenizer`; one that an interrupted run left is taken as it is."""
    file = directory / "tokenizer.json"
    if file.exists():
        return load(file)
    if config.tokenizer == "bpe":
        tokenizer = train_bpe((text for text, _ in split.texts(source, "train")), config.vocab_size)
    elif config.tokenizer == "characters":
        tokenizer = train_characters(document.text for document in source.documents())
    else:
        tokenizer = load(config.tokenizer)
    _write(file, tokenizer.to_json().encode())
    return tokenizer


def _batches(texts: Iterable[tuple[str, bool]]) -> Iterator[tuple[list[str], list[bool]]]:
    """Groups texts, the long ones cut where tokens are not affected, for `encode_batch`."""
    batch: list[str] = []
    ends: list[bool] = []
    size = 0
    for text, end in texts:
        parts = list(pieces(text))
        for i, part in enumerate(parts):
            batch.append(part)
            ends.append(end and i == len(parts) - 1)
            size += len(part)
            if size >= BATCH_CHARACTERS:
                yield batch, ends
                batch, ends, size = [], [], 0
    if batch:
        yield batch, ends


class _ShardWriter:
    """Cuts a stream of tokens into shard files; those that an interrupted run has finished are not written again."""

    def __init__(self, directory: Path, split: str, dtype: np.dtype, tokens_per_shard: int):
        self._directory, self._split, self._dtype, self._size = directory, split, dtype, tokens_per_shard
        self._shards: list[dict[str, Any]] = []
        self._pending: list[np.ndarray] = []
        self._count = 0

    def add(self, ids: list[int]) -> None:
        tokens = np.asarray(ids, self._dtype)
        while self._count + len(tokens) >= self._size:
            room = self._size - self._count
            self._pending.append(tokens[:room])
            tokens = tokens[room:]
            self._flush()
        self._pending.append(tokens)
        self._count += len(tokens)

    def close(self) -> list[dict[str, Any]]:
        """Writes the last shard; returns the manifest's entries."""
        if self._count:
            self._flush()
        return self._shards

    def _flush(self) -> None:
        data = np.concatenate(self._pending).tobytes()
        file = self._directory / f"{self._split}-{len(self._shards):05d}.bin"
        shard = {
            "file": file.name,
            "tokens": len(data) // self._dtype.itemsize,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        if file.exists():
            _check_shard(file, shard)
        else:
            _write(file, data)
        self._shards.append(shard)
        self._pending, self._count = [], 0


def _check_shard(file: Path, shard: dict[str, Any]) -> None:
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != shard["sha256"]:
        raise InputError(f"{file} is missing or not what was written; delete {file.parent} to make it anew")


def _refuse_other(identity: dict[str, Any], found: dict[str, Any], directory: Path) -> None:
    flat = lambda d: d["options"] | {"version": d["version"], "the corpus's files": d["fingerprint"][:12]}
    there, here = flat(found), flat(identity)
    different = [
        f"{name} ({there.get(name)!r} there, {here[name]!r} here)" for name in here if there.get(name) != here[name]
    ]
    if different:
        raise InputError(
            f"{directory} was prepared from other data: {', '.join(different)}; give the same options, another "
            "--workdir, or delete that folder"
        )


def _read_json(file: Path) -> dict[str, Any] | None:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def _write_json(file: Path, value: dict[str, Any]) -> None:
    _write(file, (json.dumps(value, indent=2) + "\n").encode())


def _write(file: Path, data: bytes) -> None:
    """Writes whole or not at all: under another name first."""
    temporary = file.with_name(file.name + ".part")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, file)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"could not write {file}: {error.strerror}; free some space and run the same command again: it goes on "
            "from what is finished"
        ) from error

"""Documents to tokens on disk: shards of little-endian integers, a tokenizer and a manifest, made once.

A prepared folder holds `train-00000.bin ...`, `validation-00000.bin ...`, `tokenizer.json` and, written last,
`manifest.json`. Until then `progress.json` says which shards are finished; a run that is killed goes on after them and
ends with the same bytes as one that is not.
"""

import array
import dataclasses
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from absl import logging

from gpt2_jax.config import DataConfig
from gpt2_jax.data.prepared import FORMAT, SPLITS, Prepared, hashes, load_prepared, redo, sha256_of, shards_of
from gpt2_jax.data.sources import Source, open_source
from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer import Tokenizer, load, pieces, train_bpe, train_characters

DOCUMENT_SPLIT_FROM = 20
BATCH_CHARACTERS = 2**22
SECONDS_BETWEEN_REPORTS = 30


@dataclasses.dataclass(frozen=True)
class Division:
    """Which text trains and which validates.

    Attributes:
      kind: "document" or "tail".
      boundary: "document": the largest `document_hash` that validates; "tail": characters that train.
    """

    kind: Literal["document", "tail"]
    boundary: int


class Piece(NamedTuple):
    """Some text of a split, encoded at once: whether its part of a document, and the document itself, ends with it."""

    text: str
    ends_part: bool
    ends_document: bool


def prepare(config: DataConfig, directory: str | Path, *, progress: Callable[[str], None] = logging.info) -> Prepared:
    """Makes the tokens of `config` in `directory`, goes on with them, or finds them done.

    Args:
      config: the corpus, its split and its tokenizer.
      directory: a folder for this alone; made if absent.
      progress: is told in one line what happens.

    Raises:
      InputError: a bad corpus or tokenizer, a split left empty, a full disk, or a folder that holds the tokens of
        another corpus or of other options.
    """
    directory = Path(directory)
    if (directory / "manifest.json").exists():
        prepared = load_prepared(directory)
        _refuse_other(prepared, config)
        (directory / "progress.json").unlink(missing_ok=True)
        progress(f"{directory} holds the tokens already: {_summary(prepared.manifest)}")
        return prepared

    source = open_source(config)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory} cannot be made ({error.strerror}); choose another workdir") from None
    record = _resume(directory, config, source, progress) or _begin(directory, config, source, progress)
    tokenizer = load(directory / "tokenizer.json")
    for split in SPLITS:
        _write_split(directory, split, record, source, tokenizer, progress)

    for split in record["splits"].values():
        del split["next"]
    _save(directory / "manifest.json", record)
    (directory / "progress.json").unlink()
    progress(f"{directory}: {_summary(record)}")
    return load_prepared(directory)


def divide(config: DataConfig, source: Source) -> Division:
    """Reads the corpus once to place the boundary between training and validation text.

    "document" takes the `max(1, round(n * validation_fraction))` documents with the lowest hash, and any with the same
    text as one of them; "tail" cuts the corpus after `int(characters * (1 - validation_fraction))`.

    Raises:
      InputError: one of the two would be empty.
    """
    hashes, characters = array.array("Q"), 0
    for document in source.documents():
        hashes.append(document_hash(document.text))
        characters += len(document.text)
    n, fraction = len(hashes), config.validation_fraction
    if config.split == "tail" or (config.split == "auto" and n < DOCUMENT_SPLIT_FROM):
        boundary = int(characters * (1 - fraction))
        if not 0 < boundary < characters:
            raise InputError(
                f"the corpus has {characters} characters, and data.validation_fraction {fraction} puts {boundary} of"
                " them in the training split, so that one of the splits is empty; change it or give more text"
            )
        return Division("tail", boundary)
    count = max(1, round(n * fraction))
    boundary = int(np.partition(np.array(hashes), count - 1)[count - 1])
    if max(hashes) <= boundary:
        raise InputError(
            f"the corpus has {n} documents ({len(set(hashes))} different), and data.validation_fraction {fraction}"
            " leaves none to train on; change it, give more documents, or use --config.data.split=tail"
        )
    return Division("document", boundary)


def document_hash(text: str) -> int:
    """The first 64 bits of the text's sha256: where a document goes depends on nothing but itself."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def split_texts(source: Source, division: Division, split: str) -> Iterator[tuple[str, bool]]:
    """The texts of one split in order, each with whether its document ends with it: not so before a tail's cut."""
    position = 0
    for document in source.documents():
        text = document.text
        if division.kind == "document":
            cut = 0 if document_hash(text) <= division.boundary else len(text)
        else:
            cut = min(max(division.boundary - position, 0), len(text))
            position += len(text)
        part, ends = (text[:cut], cut == len(text)) if split == "train" else (text[cut:], True)
        if part:
            yield part, ends


def _begin(directory: Path, config: DataConfig, source: Source, progress: Callable[[str], None]) -> dict[str, Any]:
    """Writes the tokenizer and a record without shards."""
    for split in SPLITS:
        for leftover in directory.glob(f"{split}-*.bin*"):
            leftover.unlink()
    progress(f"reading {source.describe()}")
    division = divide(config, source)
    if config.tokenizer == "bpe":
        progress(f"training a byte-level BPE of {config.vocab_size} entries")
        tokenizer = train_bpe((text for text, _ in split_texts(source, division, "train")), config.vocab_size)
    elif config.tokenizer == "characters":
        tokenizer = train_characters(document.text for document in source.documents())
    else:
        tokenizer = load(config.tokenizer)
    _write(directory / "tokenizer.json", tokenizer.to_json().encode())
    record = {
        "format": FORMAT,
        "options": dataclasses.asdict(config),
        "source": source.describe(),
        "fingerprint": source.fingerprint(),
        "division": dataclasses.asdict(division),
        "vocab_size": len(tokenizer),
        "dtype": "<u2" if len(tokenizer) <= 2**16 else "<u4",
        "tokenizer": sha256_of(directory / "tokenizer.json"),
        "splits": {name: {"documents": 0, "tokens": 0, "bytes": 0, "shards": [], "next": [0, 0]} for name in SPLITS},
    }
    _save(directory / "progress.json", record)
    return record


def _resume(
    directory: Path, config: DataConfig, source: Source, progress: Callable[[str], None]
) -> dict[str, Any] | None:
    """The record of an unfinished run of the same options and corpus whose finished files are intact."""
    try:
        record = json.loads((directory / "progress.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    wanted = {"format": FORMAT, "options": dataclasses.asdict(config), "fingerprint": source.fingerprint()}
    if any(record.get(key) != value for key, value in wanted.items()):
        progress(f"{directory} holds unfinished tokens of other options or another corpus: starting over")
        return None
    for file, sha256 in hashes(record):
        if not (directory / file).exists() or sha256_of(directory / file) != sha256:
            progress(f"{directory / file} is not as it was written: starting over")
            return None
    progress(f"going on after {len(shards_of(record))} finished shards")
    return record


def _write_split(
    directory: Path,
    split: str,
    record: dict[str, Any],
    source: Source,
    tokenizer: Tokenizer,
    progress: Callable[[str], None],
) -> None:
    """Writes the shards of a split that `record` lacks; its `next` is the piece, and the token in it, to go on from."""
    entry, dtype = record["splits"][split], np.dtype(record["dtype"])
    shard_bytes = record["options"]["tokens_per_shard"] * dtype.itemsize
    number, taken = entry["next"]
    todo = itertools.islice(_pieces(source, Division(**record["division"]), split), number, None)
    buffer, report = bytearray(), time.monotonic() + SECONDS_BETWEEN_REPORTS

    def finish_shard() -> None:
        path = directory / f"{split}-{len(entry['shards']):05d}.bin"
        _write(path, buffer)
        tokens = len(buffer) // dtype.itemsize
        entry["shards"].append({"file": path.name, "tokens": tokens, "sha256": hashlib.sha256(buffer).hexdigest()})
        entry["tokens"] += tokens
        entry["next"] = [number, taken]
        _save(directory / "progress.json", record)
        progress(f"{path}: {tokens:,} tokens")
        buffer.clear()

    for piece, tokens in _encode(todo, tokenizer):
        data = memoryview(np.array(tokens, dtype).tobytes())
        while rest := data[taken * dtype.itemsize :]:
            fits = rest[: shard_bytes - len(buffer)]
            buffer += fits
            taken += len(fits) // dtype.itemsize
            if len(buffer) == shard_bytes:
                finish_shard()
        number, taken = number + 1, 0
        entry["documents"] += piece.ends_part
        entry["bytes"] += len(piece.text.encode())
        if time.monotonic() > report:
            progress(f"{split}: {entry['bytes'] / 1e6:,.1f} MB of text, {entry['documents']:,} documents encoded")
            report = time.monotonic() + SECONDS_BETWEEN_REPORTS
    if buffer:
        finish_shard()


def _pieces(source: Source, division: Division, split: str) -> Iterator[Piece]:
    for text, ends_document in split_texts(source, division, split):
        *most, last = pieces(text)
        yield from (Piece(piece, False, False) for piece in most)
        yield Piece(last, True, ends_document)


def _encode(todo: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[tuple[Piece, list[int]]]:
    """Each piece with its tokens, and end-of-text where its document ends; encoded in batches, on all cores."""
    batch, characters = [], 0
    for piece in itertools.chain(todo, [None]):
        if piece is not None:
            batch.append(piece)
            characters += len(piece.text)
        if piece is None or characters >= BATCH_CHARACTERS:
            for done, tokens in zip(batch, tokenizer.encode_batch([piece.text for piece in batch])):
                yield done, tokens + [tokenizer.end_of_text] * done.ends_document
            batch, characters = [], 0


def _refuse_other(prepared: Prepared, config: DataConfig) -> None:
    """Raises unless `prepared` has the same options and corpus; a corpus that is gone from here counts as the same."""
    before, now = prepared.manifest["options"], dataclasses.asdict(config)
    changed = [f"data.{k} was {before.get(k)!r} and is {now[k]!r}" for k in now if before.get(k) != now[k]]
    if not changed:
        try:
            same = open_source(config).fingerprint() == prepared.manifest["fingerprint"]
        except InputError:
            same = True
        changed += [] if same else [f"the corpus changed (it was {prepared.manifest['source']})"]
    if not changed and config.tokenizer not in ("bpe", "characters") and Path(config.tokenizer).expanduser().exists():
        same = load(config.tokenizer).to_json() == prepared.tokenizer.to_json()
        changed += [] if same else [f"the tokenizer at {config.tokenizer} changed"]
    if changed:
        raise InputError(
            f"{prepared.directory} holds tokens of another corpus: {'; '.join(changed)}; {redo(prepared.directory)}"
        )


def _write(path: Path, data: bytes | bytearray) -> None:
    """Writes all of `data`, or leaves what was at `path` before."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise InputError(
            f"{path} cannot be written ({error.strerror}); make room and run again: it goes on after the"
            " finished shards"
        ) from None


def _save(path: Path, record: dict[str, Any]) -> None:
    _write(path, (json.dumps(record, indent=2) + "\n").encode())


def _summary(manifest: dict[str, Any]) -> str:
    counts = [
        f"{s['tokens']:,} {name} tokens of {s['documents']:,} documents" for name, s in manifest["splits"].items()
    ]
    return f"{manifest['source']}; {', '.join(counts)}; vocabulary of {manifest['vocab_size']:,}"

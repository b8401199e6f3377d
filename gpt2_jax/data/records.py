"""Manifests and records of tokens read back: each field of its type and within its bounds, or the file is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2_jax import json_files
from gpt2_jax.data.tokenize import SPLITS
from gpt2_jax.errors import InputError, shown

SHARD = re.compile(r"[a-z]+-[0-9]{5,9}(-[0-9]{5,9})?\.bin")  # in the folder, and nowhere else
NUMBER = re.compile(r"[0-9]{1,9}")
SHA256 = re.compile(r"[0-9a-f]{64}")

Test = Callable[[Any], bool]
is_text: Test = lambda value: isinstance(value, str)
is_count: Test = lambda value: type(value) is int and value >= 0
is_sha256: Test = lambda value: isinstance(value, str) and SHA256.fullmatch(value) is not None
is_splits: Test = lambda value: isinstance(value, dict) and value.keys() == set(SPLITS)
OF_ALL: dict[str, Test] = {
    "source": is_text,
    "fingerprint": is_text,
    "vocab_size": lambda value: type(value) is int and 1 <= value <= 2**32,
    "dtype": lambda value: value in ("<u2", "<u4"),  # any other may be no number, or no token
    "tokenizer": is_sha256,
    "options": lambda value: isinstance(value, dict) and isinstance(value.get("source"), str),
}
OF_UNFINISHED: dict[str, Test] = {
    "positions": lambda value: isinstance(value, list) and all(map(is_count, value)),
    "parts": lambda value: isinstance(value, dict) and all(map(NUMBER.fullmatch, value)),
    "division": lambda value: (
        isinstance(value, dict)
        and value.keys() == {"kind", "boundary"}
        and value["kind"] in ("document", "tail")
        and is_count(value["boundary"])
    ),
}
OF_PART: dict[str, Test] = {"counts": lambda value: isinstance(value, dict) and all(map(is_count, value.values()))}
OF_SPLIT: dict[str, Test] = {
    "documents": is_count,
    "tokens": is_count,
    "bytes": is_count,
    "shards": lambda value: isinstance(value, list),
}
SINCE_FORMAT_2: dict[str, Test] = {"learnt": is_count, "largest": lambda value: type(value) is int and value >= -1}
OF_SHARD: dict[str, Test] = {
    "file": lambda value: isinstance(value, str) and SHARD.fullmatch(value) is not None,
    "tokens": lambda value: type(value) is int and 1 <= value < 2**48,
    "sha256": is_sha256,
}
OF_MASKED: dict[str, Test] = {"mask": is_sha256}


def redo(directory: Path) -> str:
    """The end of an error about files that cannot be used."""
    return f"delete {directory} to make it again, or choose another workdir"


def read(file: Path) -> dict[str, Any]:
    """The JSON object of a manifest or record, as it is.

    Raises:
      InputError: no such file, or not JSON.
    """
    return json_files.read(file, "is corrupted", redo(file.parent))


def check_record(record: dict[str, Any], file: Path) -> None:
    """Raises `InputError` unless `record` is a manifest, or what `progress.json` holds."""
    finished = "splits" in record
    _check(record, OF_ALL if finished else OF_ALL | OF_UNFINISHED, file, "")
    parts = {"": record} if finished else record["parts"]
    for number, part in parts.items():
        check_part(part, file, f"parts.{number}" if number else "", old=record.get("format") == 1)


def check_part(part: Any, file: Path, where: str = "", *, old: bool = False) -> None:
    """Raises `InputError` unless `part` holds the shards of each split, of one part or of all; `old` is format 1."""
    _check(part, _known(part, OF_PART, old) | {"splits": is_splits}, file, where)
    masked = set()
    for name, split in part["splits"].items():
        inner = f"{where}.splits.{name}".lstrip(".")
        _check(split, OF_SPLIT | _known(split, SINCE_FORMAT_2, old), file, inner)
        for i, shard in enumerate(split["shards"]):
            _check(shard, OF_SHARD | _known(shard, OF_MASKED, True), file, f"{inner}.shards.{i}")
            masked.add("mask" in shard)
            if len(masked) > 1:
                raise _corrupted(file, f"{inner}.shards.{i}.mask", shard.get("mask"), "; all shards have one, or none")
        total = sum(shard["tokens"] for shard in split["shards"])
        if total != split["tokens"]:
            raise _corrupted(file, f"{inner}.tokens", split["tokens"], f"; its shards have {total:,}")


def _known(value: Any, tests: dict[str, Test], optional: bool) -> dict[str, Test]:
    """The tests of fields that may be left out, of those that are there."""
    return {name: test for name, test in tests.items() if not optional or (isinstance(value, dict) and name in value)}


def _check(value: Any, tests: dict[str, Test], file: Path, where: str) -> None:
    if not isinstance(value, dict):
        raise _corrupted(file, where or "all of it", value)
    for name, is_right in tests.items():
        if name not in value or not is_right(value[name]):
            raise _corrupted(file, f"{where}.{name}".lstrip("."), value.get(name))


def _corrupted(file: Path, where: str, value: Any, more: str = "") -> InputError:
    return InputError(f"{file} is corrupted ({where} is {shown(value)}{more}); {redo(file.parent)}")

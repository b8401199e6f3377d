"""JSON that others wrote: an object, or an error that says what is wrong.

Python's parser takes more than JSON is, and more than any file here needs: names twice, NaN, numbers that no 64 bits
hold, half surrogate pairs, nesting as deep as the stack. All of that is refused, and so is a file too large for its
kind: what is parsed takes up to 26 times the memory of its text.
"""

import json
import math
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from gpt2_jax.errors import InputError, one_line, shown

LARGEST = 16 << 20  # bytes; the tokenizer.json of GPT-2 has 1.6 MB, the manifest of 100 shards 20 kB
DEEPEST = 64  # objects and lists within each other


def read(file: Path, what: str, advice: str, largest: int = LARGEST) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
      file: to read.
      what: the middle of errors, of a file that is none: "is no index of weight files".
      advice: their end, what to do: "fetch it again".
      largest: bytes that it may have.

    Raises:
      InputError: no such file, or not one JSON object as the module says.
    """
    try:
        return parse(read_bytes(file, largest))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{file} {what} ({reason}); {advice}") from None


def find(file: Path, largest: int = LARGEST) -> dict[str, Any] | None:
    """The object in a JSON file, or None where `read` would raise."""
    try:
        return parse(read_bytes(file, largest))
    except (OSError, ValueError):
        return None


def read_bytes(file: Path, largest: int = LARGEST) -> bytes:
    """All of a file that may be so large.

    Raises:
      OSError: it cannot be read.
      ValueError: it is larger, or no file: reading a pipe would wait for ever, and a device never end.
    """
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no file")
    if status.st_size > largest:
        raise ValueError(f"it has {status.st_size:,} bytes, and may have {largest:,}")
    with file.open("rb") as stream:
        return stream.read(status.st_size)  # Python takes memory for as much as it is asked for


def lines(file: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a file that are JSON objects, and these; others, cut off while they were written, are left out.

    Raises:
      InputError: the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            while line := stream.readline(LARGEST):
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(value, dict):
                    yield line, value
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); check it and its permissions") from None


def parse(data: bytes) -> dict[str, Any]:
    """The object in the bytes of a JSON text.

    Raises:
      ValueError: it is not one JSON object as the module says.
    """
    text = data.decode()
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=_real, parse_constant=_constant
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST}") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__} and no object")
    _check_depth(value)
    if "\\u" in text:  # only an escape can spell half a pair
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{shown(twice)} is there twice")
    return found


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= (value := int(text)) < 2**64:
        raise ValueError(f"the number {text[:20]}... is too large")
    return value


def _real(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


def _check_depth(value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {DEEPEST}")

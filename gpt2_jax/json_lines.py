"""Files of JSON lines, or of plain lines, that others wrote: each line a record, or an error that says which is not."""

import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt2_jax import json_files
from gpt2_jax.errors import InputError, one_line, shown

LONGEST_LINE = 16 << 20  # bytes
SUFFIXES = (".jsonl", ".jsonl.gz")


def records(file: Path, fields: Mapping[str, type], largest: int = json_files.LARGEST * 64) -> list[dict[str, Any]]:
    """The objects of a .jsonl or .jsonl.gz file, a line each; empty lines are passed over.

    Args:
      file: to read.
      fields: names that each must have, and of which type; others are kept as they are.
      largest: bytes of text, unpacked.

    Raises:
      InputError: the file cannot be read, has no lines, or one that is not such a record.
    """
    found = []
    for number, line in _lines(file, largest):
        try:
            record = json_files.parse(line)
        except ValueError as error:
            raise InputError(f"{file}, line {number} is not a JSON object ({one_line(error)}); mend it") from None
        for name, kind in fields.items():
            if name not in record:
                raise InputError(f"{file}, line {number} has no {name!r}, only {shown(sorted(record))}; add it")
            if type(record[name]) is not kind:
                raise InputError(
                    f"{file}, line {number} has {name!r} {shown(record[name])}; it must be of type {kind.__name__}"
                )
        found.append(record)
    if not found:
        raise InputError(f"{file} has no lines; give one with a record each")
    return found


def texts(file: Path, field: str) -> list[str]:
    """The `field` of each record of a .jsonl or .jsonl.gz file; of any other, its lines that are not empty.

    Raises:
      InputError: as `records`, or a line is not UTF-8.
    """
    if file.name.endswith(SUFFIXES):
        return [record[field] for record in records(file, {field: str})]
    found = []
    for number, line in _lines(file, json_files.LARGEST * 64):
        try:
            found.append(line.decode().removeprefix("\ufeff"))
        except UnicodeDecodeError:
            raise InputError(f"{file}, line {number} is not UTF-8; convert the file") from None
    if not found:
        raise InputError(f"{file} has no lines; give a {field} a line, or .jsonl lines with a {field!r}")
    return found


def _lines(file: Path, largest: int) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, without their ends, and their numbers from 1."""
    left = largest
    try:
        with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(LONGEST_LINE + 1), b""), 1):
                left -= len(line)
                if left < 0 or len(line) > LONGEST_LINE:
                    what = f"line {number} of over {LONGEST_LINE:,}" if left >= 0 else f"over {largest:,}"
                    raise InputError(f"{file} has {what} bytes; cut it")
                if line := line.rstrip(b"\r\n"):
                    yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{file} cannot be read ({getattr(error, 'strerror', None) or one_line(error)}); check it"
        ) from None

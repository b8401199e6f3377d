"""Documents: the texts of a corpus, one by one, always in the same order.

A corpus is a list of files: a .txt, .md or .py file is one document, a .jsonl file one a line, a .parquet file one a
row.
"""

import dataclasses
import glob
import hashlib
import json
import os
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2_jax.config import DataConfig
from gpt2_jax.errors import InputError

SUFFIXES = (".txt", ".md", ".py", ".jsonl", ".parquet")
# Not the library; its tests; tables of characters and a book of prose, from which no Python is learnt.
STDLIB_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"})
PARQUET_ROWS = 256
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and where it is from: "json/decoder.py", "corpus.jsonl:17" (line or row, counted from 1)."""

    text: str
    origin: str


@dataclasses.dataclass(frozen=True)
class Source:
    """The files of a corpus, see `open_source`.

    Attributes:
      config: the options that say how to read them.
      files: `(name, path)` in reading order; the name is relative and stays the same when the corpus moves.
    """

    config: DataConfig
    files: tuple[tuple[str, Path], ...]

    def documents(self) -> Iterator[Document]:
        """All documents that are not empty or white space only.

        Raises:
          InputError: a file that cannot be read as `config` says, or no document at all.
        """
        empty = True
        for name, path in self.files:
            for document in self._read(name, path):
                if document.text.strip():
                    empty = False
                    yield document
        if empty:
            raise InputError(
                f"the corpus has no text: {_some([str(path) for _, path in self.files])} held only white space or were"
                " skipped; give files with text (--config.data.paths=...)"
            )

    def fingerprint(self) -> str:
        """Changes when a file is added, removed, renamed, resized or written to; reads no contents.

        Of the standard library, whose times are those of its installation, names and sizes count.
        """
        digest = hashlib.sha256()
        for name, path in self.files:
            stat = path.stat()
            time = stat.st_mtime_ns if self.config.source == "files" else 0
            digest.update(f"{name}\0{stat.st_size}\0{time}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def describe(self) -> str:
        """One line: what, how many files, how large."""
        size = sum(path.stat().st_size for _, path in self.files) / 1e6
        version = ".".join(map(str, sys.version_info[:3]))
        what = f"Python {version}'s standard library" if self.config.source == "stdlib" else self.config.paths
        return f"{what}: {len(self.files)} file{'s' * (len(self.files) != 1)}, {size:.2f} MB"

    def _read(self, name: str, path: Path) -> Iterator[Document]:
        try:
            if self.config.source == "stdlib":
                yield from _read_python(name, path)
            elif path.suffix.lower() == ".jsonl":
                yield from _read_jsonl(name, path, self.config)
            elif path.suffix.lower() == ".parquet":
                yield from _read_parquet(name, path, self.config)
            elif (text := _decode(path.read_bytes(), self.config.decode_errors, str(path))) is not None:
                yield Document(text.removeprefix("\ufeff").replace("\r\n", "\n"), name)
        except OSError as error:
            raise InputError(
                f"{path} cannot be read ({error.strerror or error}); check it and its permissions"
            ) from None


def open_source(config: DataConfig) -> Source:
    """Finds the files of `config.source`.

    "stdlib" is the running Python's own standard library without tests and installed packages (about 12 MB). "files" is
    `config.paths`: each comma-separated entry in turn, what it names sorted; folders are searched to the bottom, hidden
    ones left out; a file named twice is read once.

    Raises:
      InputError: an entry that matches nothing, or a file of a kind that is not read.
    """
    if config.source == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        files = [(path.relative_to(root).as_posix(), path) for path in _walk(root, STDLIB_LEFT_OUT, (".py",))]
        if not files:
            raise InputError(
                f"data.source is 'stdlib', but {root} holds no .py files; use --config.data.source=files with paths"
            )
        return Source(config, tuple(files))
    files, seen = [], set()
    for entry in filter(None, map(str.strip, config.paths.split(","))):
        for name, path in _match(entry):
            if (real := path.resolve()) not in seen:
                seen.add(real)
                files.append((name, path))
    return Source(config, tuple(files))


def _match(entry: str) -> list[tuple[str, Path]]:
    """The readable files of one file, folder or glob, with their names, which begin with the folder's."""
    root = Path(entry).expanduser()
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{root} has the suffix {root.suffix!r}; data.paths takes {' '.join(SUFFIXES)}: convert or rename it"
            )
        return [(root.name, root)]
    roots = [root] if root.is_dir() else sorted(map(Path, glob.glob(str(root), recursive=True)))
    files = []
    for root in roots:
        if root.is_dir():
            files += [(f"{root.resolve().name}/{path.relative_to(root).as_posix()}", path) for path in _walk(root)]
        elif root.is_file() and root.suffix.lower() in SUFFIXES:
            files.append((root.name, root))
    if not files:
        raise InputError(
            f"data.paths: {entry!r} matches no {' '.join(SUFFIXES)} file (looked from {Path.cwd()}); check the path,"
            " and quote globs in the shell"
        )
    return files


def _walk(root: Path, left_out: frozenset[str] = frozenset(), suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[Path]:
    """Files below `root` in sorted order; hidden ones and `__pycache__` are left out, links to folders not followed."""
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if not name.startswith((".", "__pycache__")) and name not in left_out]
        found += [Path(folder, name) for name in names if name.lower().endswith(suffixes) and name[0] != "."]
    return sorted(path for path in found if path.is_file())


def _read_python(name: str, path: Path) -> Iterator[Document]:
    """A source file in the encoding that it declares (PEP 263); one that breaks its own declaration is left out."""
    try:
        with tokenize.open(path) as file:
            yield Document(file.read(), name)
    except (SyntaxError, UnicodeDecodeError):
        return


def _read_jsonl(name: str, path: Path, config: DataConfig) -> Iterator[Document]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip() or (decoded := _decode(line, config.decode_errors, where)) is None:
                continue
            try:
                record = json.loads(decoded)
            except ValueError as error:
                raise InputError(f"{where} is not JSON ({error}); a .jsonl file has one object a line") from None
            except RecursionError:
                raise InputError(f"{where} is JSON nested too deeply; a .jsonl file has one object a line") from None
            if not isinstance(record, dict):
                raise InputError(f"{where} is a JSON {type(record).__name__}; a .jsonl file has one object a line")
            _check_key(config.text_key, list(record), where)
            text = _check_string(record[config.text_key], config.text_key, where)
            if (text := _mend_surrogates(text, config.decode_errors, where)) is not None:
                yield Document(text, f"{name}:{number}")


def _read_parquet(name: str, path: Path, config: DataConfig) -> Iterator[Document]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"reading {path} needs pyarrow; pip install 'gpt2_jax[data]'") from None

    try:
        with pq.ParquetFile(path) as file:
            _check_key(config.text_key, file.schema_arrow.names, str(path))
            number = 0
            for batch in file.iter_batches(PARQUET_ROWS, columns=[config.text_key]):
                column = batch.column(0)
                if pa.types.is_dictionary(column.type):
                    column = column.dictionary_decode()
                if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                    raise InputError(f"{path}: column {config.text_key!r} holds {column.type}; it must hold strings")
                for raw in column.cast(pa.large_binary()).to_pylist():
                    number += 1
                    if raw is None:
                        _check_string(raw, config.text_key, f"{path}:{number}")
                    if (text := _decode(raw, config.decode_errors, f"{path}:{number}")) is not None:
                        yield Document(text, f"{name}:{number}")
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a parquet file that can be read ({' '.join(str(error).split())})") from None


def _decode(raw: bytes, errors: str, where: str) -> str | None:
    """UTF-8 text of `raw`; None for what `errors` says to skip."""
    try:
        return raw.decode("utf-8", "replace" if errors == "replace" else "strict")
    except UnicodeDecodeError as error:
        if errors == "skip":
            return None
        raise InputError(
            f"{where} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}; convert it, or use"
            " --config.data.decode_errors=replace or skip"
        ) from None


def _mend_surrogates(text: str, errors: str, where: str) -> str | None:
    """JSON's escapes can spell half a surrogate pair, which UTF-8 has no bytes for."""
    if not (half := _SURROGATE.search(text)):
        return text
    if errors == "strict":
        raise InputError(
            f"{where} has half of a surrogate pair, {half[0]!r}, at character {half.start()}; mend it, or use"
            " --config.data.decode_errors=replace or skip"
        )
    return _SURROGATE.sub("\ufffd", text) if errors == "replace" else None


def _check_key(key: str, keys: list[str], where: str) -> None:
    if key not in keys:
        raise InputError(
            f"{where} has no {key!r}, only {_some(keys) or 'nothing'}; choose with --config.data.text_key=..."
        )


def _check_string(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: {key!r} is {value!r:.40}, a {type(value).__name__}; it must be a string")
    return value


def _some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

"""Documents: the Python standard library's source, or a person's own files."""

import dataclasses
import glob
import hashlib
import json
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt2_jax.config import DataConfig
from gpt2_jax.errors import InputError

PLAIN_TEXT = (".txt", ".md", ".py")
SUFFIXES = (*PLAIN_TEXT, ".jsonl", ".parquet")
# Tests are a third of the standard library and repeat themselves; topics.py is prose; the rest is not the library.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "topics.py"}


@dataclasses.dataclass(frozen=True)
class Document:
    """One text, and where it is from: a path relative to its source, with the line or row in a file of many."""

    text: str
    origin: str


@dataclasses.dataclass(frozen=True)
class Source:
    """A list of files and how to read them; from `open_source`.

    Attributes:
      files: in the order in which they are read, without repetition.
      root: what origins are relative to.
      config: `text_key` and `decode_errors` are used.
    """

    files: tuple[Path, ...]
    root: Path
    config: DataConfig

    def documents(self) -> Iterator[Document]:
        """Reads every document that is not empty, always in the same order.

        Raises:
          InputError: bytes that are not UTF-8 (unless `decode_errors` allows them), a malformed line or column, or no
            text at all.
        """
        empty = True
        for file in self.files:
            for document in self._read(file):
                if document.text:
                    empty = False
                    yield document
        if empty:
            names = ", ".join(map(str, self.files[:3])) + (", ..." if len(self.files) > 3 else "")
            raise InputError(
                f"there is no text in {names}: every document is empty; give files with text in data.paths"
            )

    def fingerprint(self) -> str:
        """A hash of the files' names, sizes and times of change: it changes when the corpus does."""
        stats = [(self._origin(file), file.stat().st_size, file.stat().st_mtime_ns) for file in self.files]
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()

    def describe(self) -> str:
        """One line for people."""
        size = sum(file.stat().st_size for file in self.files)
        what = "Python's standard library" if self.config.source == "stdlib" else self.config.paths
        return f"{what}: {len(self.files)} files, {size / 1e6:.1f} MB"

    def _origin(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix() if file.is_relative_to(self.root) else file.as_posix()

    def _read(self, file: Path) -> Iterator[Document]:
        origin = self._origin(file)
        if self.config.source == "stdlib":
            text = _python_source(file)
            if text is not None:
                yield Document(text, origin)
        elif file.suffix == ".jsonl":
            yield from self._json_lines(file, origin)
        elif file.suffix == ".parquet":
            yield from self._parquet_rows(file, origin)
        else:
            text = self._decode(file.read_bytes(), file)
            if text is not None:
                yield Document(text.replace("\r\n", "\n").replace("\r", "\n"), origin)

    def _decode(self, data: bytes, file: Path, start: int = 0) -> str | None:
        """UTF-8 bytes, a byte-order mark dropped, as text; None to leave the document out."""
        if start == 0:
            data = data.removeprefix(b"\xef\xbb\xbf")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            if self.config.decode_errors == "strict":
                raise InputError(
                    f"{file} is not UTF-8: byte 0x{data[error.start]:02x} at offset {start + error.start}; convert it, "
                    "or set --config.data.decode_errors=replace (puts U+FFFD) or skip (leaves the document out)"
                ) from None
            return data.decode(errors="replace") if self.config.decode_errors == "replace" else None

    def _json_lines(self, file: Path, origin: str) -> Iterator[Document]:
        offset = 0
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                text = self._decode(line, file, offset)
                offset += len(line)
                if text is None or not text.strip():
                    continue
                try:
                    entry = json.loads(text)
                except json.JSONDecodeError as error:
                    raise InputError(f"{file}:{number} is not JSON ({error}); each line must be one object") from None
                yield Document(self._text_of(entry, f"{file}:{number}"), f"{origin}:{number}")

    def _parquet_rows(self, file: Path, origin: str) -> Iterator[Document]:
        import pyarrow
        from pyarrow import parquet

        key, row = self.config.text_key, 0
        try:
            table = parquet.ParquetFile(file)
            if key not in table.schema_arrow.names:
                self._text_of(dict.fromkeys(table.schema_arrow.names), str(file))
            for batch in table.iter_batches(batch_size=1024, columns=[key]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield Document(self._text_of({key: value}, f"{file} row {row}"), f"{origin}:{row}")
        except pyarrow.ArrowInvalid as error:
            raise InputError(f"{file} is not a Parquet file ({error}); check that it is complete") from None

    def _text_of(self, entry: Any, where: str) -> str:
        key = self.config.text_key
        if not isinstance(entry, dict):
            raise InputError(f"{where} holds a {type(entry).__name__}; each line must be one JSON object")
        if key not in entry:
            raise InputError(f"{where} has no {key!r}, only {', '.join(map(repr, entry))}; name one by data.text_key")
        if not isinstance(entry[key], str):
            raise InputError(
                f"{where}: {key!r} is {entry[key]!r}; it must be a text; name another key by data.text_key"
            )
        return entry[key]


def open_source(config: DataConfig) -> Source:
    """Finds the files of `data.source` and `data.paths`, without reading them.

    Raises:
      InputError: nothing found, or a file of a kind that cannot be read.
    """
    if config.source == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        files = [file for file in sorted(root.rglob("*.py")) if not LEFT_OUT & set(file.relative_to(root).parts)]
        if not files:
            raise InputError(f"Python's standard library has no source in {root}; use data.source=files and data.paths")
        return Source(tuple(files), root, config)
    patterns = [pattern.strip() for pattern in config.paths.split(",") if pattern.strip()]
    found = [file for pattern in patterns for file in _find(pattern)]
    return Source(tuple(dict.fromkeys(found)), Path.cwd(), config)


def _find(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.suffix in SUFFIXES and file.is_file()]
        if not files:
            raise InputError(f"data.paths: the folder {pattern} holds no {' '.join(SUFFIXES)} file")
        return [file.absolute() for file in files]
    files = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    files = [file for file in files if file.is_file()]
    if not files:
        raise InputError(
            f"data.paths: nothing is at {pattern!r} (looked from {Path.cwd()}); give a file, folder or glob"
        )
    for file in files:
        if file.suffix not in SUFFIXES:
            raise InputError(
                f"data.paths: {file} is a {file.suffix or 'suffixless'} file; allowed are {' '.join(SUFFIXES)}"
            )
    return [file.absolute() for file in files]


def _python_source(file: Path) -> str | None:
    """Python source in its declared encoding (PEP 263); None for the few files that break it on purpose."""
    try:
        with tokenize.open(file) as lines:
            return lines.read()
    except (SyntaxError, UnicodeDecodeError):
        return None

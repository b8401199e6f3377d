"""The examples of a task, from the hub as training reads it, from a folder laid out as there, or from one file."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gpt2_jax import json_files
from gpt2_jax.data.hub import Dataset, hub_parts
from gpt2_jax.data.opening import decode, explained, open_compressed, open_parquet, records, some
from gpt2_jax.data.options import DataConfig
from gpt2_jax.data.sources import open_source
from gpt2_jax.errors import InputError, one_line

Examples = Iterable[tuple[str, dict[str, Any]]]  # (where it is, for errors; its columns)
LINES, TABLES = (".jsonl", ".jsonl.gz", ".jsonl.zst"), (".parquet",)
OPTION = "--data"


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a task's examples are.

    Attributes:
      columns: that each example needs, in the dataset, in JSON lines and in parquet.
      hub, subset, split, revision: of the dataset; without a hub id, `advice` says where to get the file.
      plain: the examples in the text of any other file; None: there is no such form.
    """

    columns: tuple[str, ...]
    hub: str = ""
    subset: str = ""
    split: str = "test"
    revision: str = ""
    advice: str = ""
    plain: Callable[[str], Iterator[dict[str, Any]]] | None = None

    def examples(self, data: str | None = None, limit: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each example, and where it is, for errors.

        Args:
          data: a file or folder; None is the hub.
          limit: how many at most.

        Raises:
          InputError: there is nothing at `data`, the hub cannot be read, or an example lacks a column.
        """
        found = (self._checked(where, example) for where, example in self._all(data))
        return itertools.islice(found, limit)

    def _all(self, data: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        path = None if data is None else Path(data).expanduser()
        if path is None or path.is_dir():
            return self._dataset(path)
        if not path.is_file():
            raise InputError(f"there is no file or folder {data}; give one with {self.describe()}")
        name = path.name.lower()
        if name.endswith(LINES):
            return _lines(path)
        if name.endswith(TABLES):
            return _table(path)
        return self._plain(path)

    def describe(self) -> str:
        """What files of the task hold."""
        other = ", or the dataset's own text file" if self.plain else ""
        return f"JSON lines or parquet of {', '.join(self.columns)}{other}"

    def _dataset(self, folder: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
        if folder is None and not self.hub:
            raise InputError(f"this dataset is not read from the hub; {self.advice}")
        where = self.hub if folder is None else str(folder)
        revision = self.revision if folder is None else ""
        dataset = Dataset(where, "" if folder else self.subset, self.split, revision, OPTION)
        for part in hub_parts(where, dataset, DataConfig()):
            for row, record in dataclasses.replace(part, columns=self.columns).rows(0):
                yield f"{part.name}:{row}", _decoded(record, f"{part.name}:{row}")

    def _plain(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        if self.plain is None:
            raise InputError(f"{path} is neither .jsonl nor .parquet; give {self.describe()}")
        with explained(path), open_compressed(path) as file:
            text = decode(file.read(), "strict", str(path)).removeprefix("\ufeff").replace("\r\n", "\n")
        for number, example in enumerate(self.plain(text), 1):
            yield f"{path}, example {number}", example

    def _checked(self, where: str, example: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        for column in self.columns:
            if column not in example:
                raise InputError(f"{where} has no {column!r}, only {some(list(example))}; give {self.describe()}")
        return where, example


class OwnFiles:
    """A user's own documents: files, folders or globs as training reads them, with commas between them."""

    def examples(self, data: str | None = None, limit: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each document, its prompt before it if it has one, as of `Source`."""
        if data is None:
            raise InputError(f"there is no {OPTION}; give {self.describe()}")
        documents = open_source(DataConfig(source="files", paths=data)).documents()
        for document in itertools.islice(documents, limit):
            yield document.origin, {"text": document.prompt + document.text}

    def describe(self) -> str:
        """What the files hold."""
        return "files or folders of text, or of records with a 'text', as data.paths of a training run takes them"


def text_of(where: str, example: dict[str, Any], column: str) -> str:
    """A column that is text.

    Raises:
      InputError: it is not.
    """
    value = example[column]
    if not isinstance(value, str):
        raise InputError(f"{where}: {column!r} is {value!r:.60}; it must be text")
    return value


def texts_of(where: str, example: dict[str, Any], column: str) -> list[str]:
    """A column that is a list of texts, at least one.

    Raises:
      InputError: it is not.
    """
    value = example[column]
    if not isinstance(value, list) or not value or not all(isinstance(part, str) for part in value):
        raise InputError(f"{where}: {column!r} is {value!r:.60}; it must be a list of texts")
    return value


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with explained(path), open_compressed(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    example = json_files.parse(line)
                except ValueError as error:
                    raise InputError(
                        f"{path}:{number} is not one JSON object ({one_line(error)}); a .jsonl file has one a line"
                    ) from None
                yield f"{path}:{number}", example


def _table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open_parquet(path) as (file, _):
        row = 0
        for batch in file.iter_batches(256):
            for record in records(batch):
                row += 1
                yield f"{path}:{row}", _decoded(record, f"{path}:{row}")


def _decoded(record: dict[str, Any], where: str) -> dict[str, Any]:
    return {
        name: decode(value, "strict", where) if isinstance(value, bytes) else value for name, value in record.items()
    }

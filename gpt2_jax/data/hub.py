"""Datasets of the Hugging Face hub, or folders laid out as there, streamed row by row through `datasets`."""

import dataclasses
import functools
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging

from gpt2_jax.config import DataConfig
from gpt2_jax.data.documents import Document, document_of, kept
from gpt2_jax.errors import InputError, one_line

STALL_SECONDS = 120  # without a row, after which a source counts as failed
FIRST_PAUSE = 1.0  # seconds before it is asked again; then twice as long each time
READ_AHEAD = 256  # rows
Row = tuple[int, dict[str, Any]]  # the row to go on from, and the row's fields
_TITLE = re.compile(r" = [^=].*[^=] = \n?")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What `datasets.load_dataset` opens: a hub id, or a folder with a copy; "" is the default of each."""

    path: str
    subset: str
    split: str
    revision: str

    def __str__(self) -> str:
        return self.path + (f" ({self.subset})" if self.subset else "")


@dataclasses.dataclass(frozen=True)
class HubShard:
    """One of a dataset's own shards; see `documents.Part`.

    Attributes:
      name: "owner/name/train/00003-of-00080".
      dataset: which; `index` of `shards`.
      config: with the columns' names filled in.
      assemble: makes the rows of documents from those of the dataset, a name of `ASSEMBLERS`, or "".
    """

    name: str
    dataset: Dataset
    index: int
    shards: int
    config: DataConfig
    assemble: str = ""

    def documents(self, start: int = 0, counts: Counter | None = None) -> Iterator[tuple[int, Document]]:
        rows = self.rows(start)
        if self.assemble:
            rows = ASSEMBLERS[self.assemble](rows)
        for row, record in rows:
            where = f"{self.name}:{row}"
            yield from kept(row, document_of(record, self.config, where, where), record, self.config, counts)

    def rows(self, start: int) -> Iterator[Row]:
        """The rows from `start` on; a source that fails or stalls is asked again from the row reached.

        Raises:
          InputError: it failed `config.retries` times in a row.
        """
        row, failures = start, 0
        while True:
            try:
                for record in _within(self._read(row), STALL_SECONDS):
                    row, failures = row + 1, 0
                    yield row, record
                return
            except InputError:
                raise
            except Exception as error:  # of datasets, fsspec, aiohttp, pyarrow: no narrower class is common to them
                failures += 1
                reason = f"{type(error).__name__}: {one_line(error)}".rstrip(": ")
                if failures > self.config.retries:
                    raise InputError(
                        f"{self.name} failed at row {row}, {failures} times in a row, at last with {reason}; what was "
                        "done is kept: run again when the source is back, or give a copy of it (--config.data.paths)"
                    ) from None
                pause = FIRST_PAUSE * 2 ** (failures - 1)
                logging.warning("%s failed at row %d (%s): asking again in %g s", self.name, row, reason, pause)
                time.sleep(pause)

    def _read(self, start: int) -> Iterator[dict[str, Any]]:
        shard = open_dataset(self.dataset).shard(self.shards, self.index)
        return iter(shard.skip(start) if start else shard)


def hub_parts(name: str, dataset: Dataset, config: DataConfig, assemble: str = "") -> tuple[HubShard, ...]:
    """The shards of a dataset as parts.

    Raises:
      InputError: it cannot be reached or opened, or lacks a column.
    """
    opened = open_dataset(dataset)
    shards = opened.num_shards
    return tuple(
        HubShard(f"{name}/{dataset.split}/{i:05d}-of-{shards:05d}", dataset, i, shards, config, assemble)
        for i in range(shards)
    )


@functools.lru_cache(maxsize=8)
def open_dataset(dataset: Dataset) -> Any:
    """The `datasets.IterableDataset`.

    Raises:
      InputError: no such dataset, subset or split, one made by a script, or no network.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(f"reading {dataset} needs datasets; pip install 'gpt2_jax[data]'") from None
    try:
        return datasets.load_dataset(
            dataset.path,
            dataset.subset or None,
            split=dataset.split,
            revision=dataset.revision or None,
            streaming=True,
        )
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise InputError(
            f"{dataset} is made by a script, which is not run; use --config.data.revision=refs/convert/parquet if the "
            "hub has converted it, or a folder with a copy in parquet or .jsonl (--config.data.paths)"
        ) from None
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise InputError(
            f"{dataset}, split {dataset.split!r}, cannot be opened ({type(error).__name__}: {reason}); check the id, "
            "subset and split; without network, give a folder with a copy of it (--config.data.paths), or set HF_HOME "
            "to a cache that has it"
        ) from None


def _within(rows: Iterator[Any], seconds: float) -> Iterator[Any]:
    """`rows`, read ahead by a thread.

    Raises:
      TimeoutError: none came for so many seconds.
    """
    read: queue.Queue = queue.Queue(READ_AHEAD)
    stopped, end = threading.Event(), object()

    def put(item: tuple[Any, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                return read.put(item, timeout=0.1)
            except queue.Full:
                continue

    def pump() -> None:
        try:
            for row in rows:
                put((row, None))
                if stopped.is_set():
                    return
            put((end, None))
        except BaseException as error:
            put((end, error))
        finally:
            if hasattr(rows, "close"):  # a generator, which may hold a connection
                rows.close()

    threading.Thread(target=pump, name="rows", daemon=True).start()
    try:
        while True:
            try:
                row, error = read.get(timeout=seconds)
            except queue.Empty:
                raise TimeoutError(f"no row came for {seconds:g} seconds") from None
            if error is not None:
                raise error
            if row is end:
                return
            yield row
    finally:
        stopped.set()


def _books(rows: Iterator[Row]) -> Iterator[Row]:
    """Lines of verse, one a row, to one document a book: the dataset marks where a book begins, and no poem."""
    return _grouped(rows, "line", lambda record, before: record["gutenberg_id"] != before["gutenberg_id"], "\n")


def _articles(rows: Iterator[Row]) -> Iterator[Row]:
    """Lines of WikiText to one document an article, which begins with " = Title = "."""
    return _grouped(rows, "text", lambda record, before: bool(_TITLE.fullmatch(record["text"])), "")


def _grouped(rows: Iterator[Row], key: str, begins: Callable[[dict, dict], bool], joint: str) -> Iterator[Row]:
    lines, reached, before = [], 0, None
    for row, record in rows:
        if before is not None and begins(record, before):
            yield reached, before | {key: joint.join(lines)}
            lines = []
        lines.append(record[key])
        reached, before = row, record
    if before is not None:
        yield reached, before | {key: joint.join(lines)}


def _prompted(rows: Iterator[Row]) -> Iterator[Row]:
    """A prompt and its story, with an empty line between them."""
    for row, record in rows:
        yield row, record | {"prompt": record["prompt"].strip() + "\n\n"}


ASSEMBLERS: dict[str, Callable[[Iterator[Row]], Iterator[Row]]] = {
    "books": _books,
    "articles": _articles,
    "prompted": _prompted,
}

"""Datasets of the Hugging Face hub, or folders laid out as there, streamed row by row through `datasets`."""

import dataclasses
import functools
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import logging

from gpt2_jax.data.assemblers import ASSEMBLERS, Row
from gpt2_jax.data.documents import Document, check_key, check_string, document_of, kept
from gpt2_jax.data.opening import records, some
from gpt2_jax.data.options import DataConfig
from gpt2_jax.errors import InputError, one_line

STALL_SECONDS = 120  # without a row, after which a source counts as failed
FIRST_PAUSE = 1.0  # seconds before it is asked again; then twice as long each time
READ_AHEAD = 256  # rows


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What `datasets.load_dataset` opens: a hub id, or a folder with a copy; "" is the default of each.

    `option` is what errors tell to use for a copy.
    """

    path: str
    subset: str
    split: str
    revision: str
    option: str = "--config.data.paths"

    @property
    def local(self) -> bool:
        """Whether it is a folder: what cannot be read there cannot be read a second later either."""
        return Path(self.path).is_dir()

    def __str__(self) -> str:
        return self.path + (f" ({self.subset})" if self.subset else "")


@dataclasses.dataclass(frozen=True)
class HubShard:
    """One of a dataset's own shards; see `documents.Part`.

    Attributes:
      name: "owner/name/train/00003-of-00080".
      dataset: which; `index` of `shards`.
      config: with the columns' names filled in.
      assemble: makes the rows of documents from those of the dataset, a name of `assemblers.ASSEMBLERS`, or "".
      columns: that `rows` reads, those that are there; none are those of documents.
    """

    name: str
    dataset: Dataset
    index: int
    shards: int
    config: DataConfig
    assemble: str = ""
    columns: tuple[str, ...] = ()

    def documents(self, start: int = 0, counts: Counter | None = None) -> Iterator[tuple[int, Document]]:
        """See `documents.Part.documents`."""
        rows = self.rows(start)
        if self.assemble:
            rows = ASSEMBLERS[self.assemble].assemble(self._checked(rows), self.config)
        for row, record in rows:
            where = f"{self.name}:{row}"
            yield from kept(row, document_of(record, self.config, where, where), record, self.config, counts)

    def rows(self, start: int) -> Iterator[Row]:
        """The rows from `start` on; a source that fails or stalls is asked again from the row reached.

        Raises:
          InputError: a column is missing, a local file is damaged, or the hub failed more than `config.retries` times
            in a row.
        """
        row, failures = start, 0
        while True:
            try:
                for record in _within(self._read(row), STALL_SECONDS):
                    if record is not None:
                        row, failures = row + 1, 0
                        yield row, record
                return
            except InputError:
                raise
            except Exception as error:  # of datasets, fsspec, aiohttp, pyarrow: no narrower class is common to them
                failures += 1
                reason = _reason(error)
                if self.dataset.local:
                    raise InputError(
                        f"{self.name} cannot be read after row {row} ({reason}); a file in {self.dataset.path} is "
                        "damaged or cut short: copy it again"
                    ) from None
                if failures > self.config.retries:
                    raise InputError(
                        f"{self.name} failed at row {row}, {failures} times in a row, at last with {reason}; what was "
                        f"done is kept: run again when the source is back, or give a copy of it ({self.dataset.option})"
                    ) from None
                pause = FIRST_PAUSE * 2 ** (failures - 1)
                logging.warning("%s failed at row %d (%s): asking again in %g s", self.name, row, reason, pause)
                time.sleep(pause)

    def _read(self, start: int) -> Iterator[dict[str, Any] | None]:
        """The rows from `start` on, their strings as bytes; None for rows that are passed over on the way there."""
        shard = _load(self.dataset).shard(self.shards, self.index).with_format("arrow")
        passed = 0
        for table in shard.iter(READ_AHEAD):
            columns = self._columns(table.column_names)
            if passed < start:
                table, passed = table.slice(start - passed), passed + table.num_rows
                yield None
            for batch in table.select(columns).to_batches():
                yield from records(batch)

    def _columns(self, names: list[str]) -> list[str]:
        if self.columns:
            return [name for name in names if name in self.columns]
        config, needed = self.config, ASSEMBLERS[self.assemble].needs if self.assemble else ""
        check_key(config.text_key, names, self.name, "text_key")
        for option in ("prompt_key", "control_key"):
            if getattr(config, option):
                check_key(getattr(config, option), names, self.name, option)
        if needed and needed not in names:
            raise InputError(
                f"{self.name} has no {needed!r}, by which its rows are joined, only {some(names)}; to take each row "
                "for a document, name the dataset by its hub id (--config.data.source=owner/name)"
            )
        wanted = (config.text_key, config.prompt_key, config.control_key, needed, "license", "autogenerated")
        return [name for name in names if name in wanted]

    def _checked(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row, record in rows:
            for key in filter(None, (self.config.text_key, self.config.prompt_key)):
                check_string(record[key], key, f"{self.name}:{row}")
            yield row, record


def hub_parts(name: str, dataset: Dataset, config: DataConfig, assemble: str = "") -> tuple[HubShard, ...]:
    """The shards of a dataset as parts.

    Raises:
      InputError: it cannot be reached or opened.
    """
    opened = open_dataset(dataset)
    shards = opened.num_shards
    return tuple(
        HubShard(f"{name}/{dataset.split}/{i:05d}-of-{shards:05d}", dataset, i, shards, config, assemble)
        for i in range(shards)
    )


def open_dataset(dataset: Dataset) -> Any:
    """The `datasets.IterableDataset`.

    Raises:
      InputError: no such dataset, subset or split, one made by a script, a damaged file, or no network.
    """
    try:
        return _load(dataset)
    except InputError:
        raise
    except Exception as error:  # see `HubShard.rows`
        if "scripts are no longer supported" in str(error):
            raise InputError(
                f"{dataset} is made by a script, which is not run; use --config.data.revision=refs/convert/parquet if "
                f"the hub has converted it, or a folder with a copy in parquet or .jsonl ({dataset.option})"
            ) from None
        advice = (
            "check the subset, the split, and that its files are whole and laid out as on the hub"
            if dataset.local
            else "check the id, subset and split; without network, give a folder with a copy of it "
            f"({dataset.option}), or set HF_HOME to a cache that has it"
        )
        raise InputError(f"{dataset}, split {dataset.split!r}, cannot be opened ({_reason(error)}); {advice}") from None


@functools.lru_cache(maxsize=8)
def _load(dataset: Dataset) -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError(f"reading {dataset} needs datasets; pip install 'gpt2_jax[data]'") from None
    # Otherwise it asks 20 times by itself, for minutes, within each of `config.retries`.
    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0
    return datasets.load_dataset(
        dataset.path,
        dataset.subset or None,
        split=dataset.split,
        revision=dataset.revision or None,
        streaming=True,
    )


@functools.lru_cache(maxsize=8)
def local_files(dataset: Dataset) -> tuple[tuple[str, Path], ...]:
    """Name and path of what a local dataset is read from, found once a process; nothing of one of the hub."""
    if not dataset.local:
        return ()
    import datasets

    folder = Path(dataset.path).resolve()
    found = datasets.load_dataset_builder(dataset.path, dataset.subset or None).config.data_files or {}
    paths = [Path(file.rpartition("::")[2]) for file in found.get(dataset.split, ())]  # "zip://a::/of/archive.zip"
    return tuple((os.path.relpath(path, folder), path) for path in paths if path.is_file())


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}".rstrip(": ")


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

"""Streamed text kept as prepared tokens: each part that a reader reads through is written as prepare.py would.

Preparation, or a run on prepared tokens, goes on after the parts that are there, and finds nothing to do when all are.
Validation documents are the stream's: those whose hash is low (`Division.by_hash`).
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2_jax.data.documents import Document
from gpt2_jax.data.layout import Layout, Progress
from gpt2_jax.data.manifest import (
    as_json,
    begin,
    locked,
    make_folder,
    new_record,
    part_record,
    unfinished,
    write_file,
)
from gpt2_jax.data.options import DataConfig
from gpt2_jax.data.prepare import encoding_of, finished, subfolder
from gpt2_jax.data.sources import Source
from gpt2_jax.data.tokenize import Encoded, PartWriter, Task
from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer import Tokenizer


class PartFiller:
    """Writes one part: told of each document before it is encoded, given its tokens after that."""

    def __init__(self, folder: Path, task: Task):
        self._folder, self._number = folder, task.number
        self._writer = PartWriter(task, functools.partial(write_file, folder))
        self._counts: Counter | None = None

    def expect(self, document: Document, validates: bool) -> None:
        """Tells of the next document."""
        self._writer.expect("validation" if validates else "train", document)

    def add(self, encoded: Encoded) -> None:
        """Takes the tokens of the document that was told of first."""
        self._writer.add(encoded)
        self._finish()

    def end(self, counts: Counter) -> None:
        """All documents have been told of; `counts` are those of `Part.documents`."""
        self._counts = counts
        self._finish()

    def _finish(self) -> None:
        if self._counts is not None and not self._writer.waiting:
            entry = self._writer.finish(self._counts)
            if not (self._folder / "manifest.json").exists():  # preparation has not overtaken
                write_file(self._folder, part_record(self._number), as_json(entry))


@dataclasses.dataclass(frozen=True)
class Filler:
    """Where a streamed source is written.

    Attributes:
      folder: of its tokens.
      tasks: one a part.
      finished: numbers of the parts that were there before.
    """

    folder: Path
    tasks: tuple[Task, ...]
    finished: frozenset[int]

    def part(self, number: int) -> PartFiller | None:
        """What writes a part; None for one that is there."""
        there = (self.folder / part_record(number), self.folder / "manifest.json")
        if number in self.finished or any(path.exists() for path in there):
            return None
        return PartFiller(self.folder, self.tasks[number])


def open_fillers(
    config: DataConfig, directory: Path, sources: Mapping[str, Source], tokenizer: Tokenizer, progress: Progress
) -> dict[str, Filler]:
    """What fills the folder of each source that is not finished; the folders' records are begun if they are not.

    Every process of a run calls it, and sees the same `directory`.

    Args:
      config, directory, progress: as of `prepare.prepare`.
      sources: by name.
      tokenizer: of all of them.

    Raises:
      InputError: fewer parts than readers, a folder that holds other tokens, or a full disk.
    """
    for name, source in sources.items():
        if len(source.parts) < config.readers:
            raise InputError(
                f"data.fill_prepared keeps the parts that one reader reads, and {name} has {len(source.parts)} for "
                f"data.readers ({config.readers}) to share; set --config.data.readers={len(source.parts)} or fewer, or "
                "prepare it first (scripts/prepare_data.py)"
            )
    folders = {name: directory / subfolder(config, name) for name in sources}
    for folder in folders.values():
        make_folder(folder)
    found = {}
    with locked(directory, progress):
        for name, folder in folders.items():
            source, layout = sources[name], Layout.by_hash(config, sources[name])
            if finished(config, name, folder, progress, tokenizer):
                continue
            record = _begun(config, folder, source, tokenizer)
            if record is None:
                record = begin(folder, config, layout, tokenizer)
            tasks = layout.tasks(config, encoding_of(config, name, tokenizer), record["dtype"])
            found[name] = Filler(folder, tuple(tasks), frozenset(map(int, record["parts"])))
    return found


def _begun(config: DataConfig, folder: Path, source: Source, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The record of unfinished tokens that are made as these will be.

    Raises:
      InputError: they are of another corpus, or were divided or encoded otherwise.
    """
    record = unfinished(folder, config, source)
    if record is None:
        return None
    new = new_record(config, Layout.by_hash(config, source), tokenizer)
    if any(record[key] != new[key] for key in ("division", "tokenizer")):
        raise InputError(
            f"{folder} holds unfinished tokens of another tokenizer, or of which others validate; finish them with "
            "scripts/prepare_data.py, or choose another --config.data.prepared"
        )
    return record

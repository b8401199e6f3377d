"""Where the texts of a corpus go: which train, which validate, which are left out as duplicates."""

import array
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gpt2_jax.data.documents import Part
from gpt2_jax.data.hub import HubShard
from gpt2_jax.data.options import DataConfig
from gpt2_jax.data.sources import Source, nothing_kept
from gpt2_jax.data.tokenize import Division, Encoding, Task, document_hash
from gpt2_jax.errors import InputError

DOCUMENT_SPLIT_FROM = 20
Progress = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the texts of a corpus go.

    Attributes:
      source: the corpus.
      division: which text trains.
      positions: characters before each part.
      duplicates: of each part, the rows that are left out.
    """

    source: Source
    division: Division
    positions: tuple[int, ...]
    duplicates: tuple[frozenset[int], ...]

    @classmethod
    def of_record(cls, config: DataConfig, source: Source, record: dict[str, Any] | None) -> "Layout | None":
        """The layout of an unfinished run, unless it has to be found again."""
        if record is None or config.deduplicate:
            return None
        nothing = (frozenset(),) * len(source.parts)
        return cls(source, Division(**record["division"]), tuple(record["positions"]), nothing)

    @classmethod
    def by_hash(cls, config: DataConfig, source: Source) -> "Layout":
        """The layout of a corpus that is not read beforehand, see `Division.by_hash`."""
        n = len(source.parts)
        return cls(source, Division.by_hash(config.validation_fraction), (0,) * n, (frozenset(),) * n)

    def tasks(self, config: DataConfig, encoding: Encoding, dtype: str) -> list[Task]:
        """One a part."""
        parts = zip(self.source.parts, self.positions, self.duplicates)
        return [
            Task(
                part=part,
                number=i,
                encoding=encoding,
                division=self.division,
                position=position,
                duplicates=duplicates,
                dtype=dtype,
                tokens_per_shard=config.tokens_per_shard,
                masked=bool(self.source.config.prompt_key),
            )
            for i, (part, position, duplicates) in enumerate(parts)
        ]

    def texts(self, config: DataConfig, splits: Sequence[str]) -> Iterator[str]:
        """The texts and prompts of some splits."""
        for task in self.tasks(config, Encoding(""), ""):
            for split, document, _ in task.divided(Counter()):
                if split in splits:
                    yield from filter(None, (document.prompt, document.text))


def lay_out(config: DataConfig, source: Source, run: Callable, progress: Progress) -> Layout:
    """Reads the corpus once to place the boundary between training and validation text, and to find duplicates.

    "document" takes the `max(1, round(n * validation_fraction))` documents with the lowest hash, and any with the same
    text as one of them; "tail" cuts the corpus after `int(characters * (1 - validation_fraction))`. A dataset of the
    hub is not read beforehand unless `config.deduplicate`: of it those documents validate whose hash is in the lowest
    `validation_fraction` of all hashes.

    Raises:
      InputError: one of the two would be empty.
    """
    parts = source.parts
    if parts and isinstance(parts[0], HubShard) and config.split != "tail" and not config.deduplicate:
        return Layout.by_hash(config, source)
    progress(f"reading {source.describe()}")
    counts: Counter = Counter()
    seen: set[int] = set()
    hashes, characters, positions, duplicates = array.array("Q"), 0, [], []
    for survey in run(survey_part, parts):
        counts.update(survey.counts)
        positions.append(characters)
        again = set()
        for row, digest, length in zip(survey.rows, survey.hashes, survey.lengths):
            if config.deduplicate and digest in seen:
                again.add(row)
                continue
            if config.deduplicate:
                seen.add(digest)
            hashes.append(digest)
            characters += length
        duplicates.append(frozenset(again))
    if not hashes:
        raise nothing_kept(source, counts)
    return Layout(source, _division(config, hashes, characters), tuple(positions), tuple(duplicates))


@dataclasses.dataclass(frozen=True)
class Survey:
    """The documents of a part: rows, hashes and lengths in characters, and what was left out."""

    rows: array.array
    hashes: array.array
    lengths: array.array
    counts: Counter


def survey_part(part: Part) -> Survey:
    """Reads a part once."""
    survey = Survey(array.array("Q"), array.array("Q"), array.array("Q"), Counter())
    for row, document in part.documents(0, survey.counts):
        survey.rows.append(row)
        survey.hashes.append(document_hash(document))
        survey.lengths.append(len(document.text))
    return survey


def _division(config: DataConfig, hashes: array.array, characters: int) -> Division:
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

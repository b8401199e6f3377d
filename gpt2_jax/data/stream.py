"""The streaming road: documents are read, encoded and cut into windows while the model trains on them.

R readers (reader.py) read shares of the corpus side by side and give B / R rows of every batch each, so that batch n is
the same however many processes share the readers out.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from gpt2_jax.data.documents import Document
from gpt2_jax.data.filling import Filler
from gpt2_jax.data.mixture import Mixture
from gpt2_jax.data.reader import COUNTERS, Reader, shares
from gpt2_jax.data.rows import ALL, Rows
from gpt2_jax.data.sources import Source
from gpt2_jax.data.tokenize import Division, Encoding
from gpt2_jax.data.windows import boundaries
from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer import Tokenizer


class Stream:
    """The training batches of a run from its next step on: an iterator, and the position of what it has given.

    Args:
      sources: by their names, in the order of the mixture.
      encodings: of each source.
      reweighing: see `Mixture`; of a single source it does nothing.
      batch_size: rows of the global batch.
      sequence_length: tokens predicted per row, T.
      validation_fraction: share of the documents that do not train.
      readers: at most; as many as divide `batch_size`.
      shuffle_windows: of all readers together.
      seed: of every order.
      start_step: the next batch.
      position: int64 [readers, sources, 6], as saved; None is the beginning.
      fillers: what keeps the tokens of a source, by its name; see filling.py. Of several processes the first does.
      rows: of the global batch, those of this process.

    Raises:
      InputError: readers that the processes cannot share, or a source without documents.

    Attributes:
      like: arrays of the shapes and types of a batch.
    """

    def __init__(
        self,
        sources: Mapping[str, Source],
        encodings: Mapping[str, Encoding],
        reweighing: Sequence[tuple[int, Mapping[str, float]]],
        *,
        batch_size: int,
        sequence_length: int,
        validation_fraction: float,
        readers: int,
        shuffle_windows: int,
        seed: int,
        mask_documents: bool = False,
        restart_positions: bool = False,
        start_step: int = 0,
        position: np.ndarray | None = None,
        fillers: Mapping[str, Filler] = MappingProxyType({}),
        rows: Rows = ALL,
    ):
        readers = math.gcd(readers, batch_size)
        own = rows.of(batch_size)
        if readers % rows.parts:
            raise InputError(
                f"{readers} readers cannot be shared by processes that read {rows.parts} parts of a batch; set "
                f"--config.data.readers to a multiple of {rows.parts} that divides training.batch_size ({batch_size})"
            )
        part_of = [number * rows.parts // readers for number in range(readers)]
        self._numbers = [number for number in range(readers) if part_of[number] in rows.held]
        self._batch_size, self._T, self._step = batch_size, sequence_length, start_step
        self._own, self._rows = own, batch_size // readers
        self._boundaries = {"mask_documents": mask_documents, "restart_positions": restart_positions}
        self._end_of_text = next(iter(encodings.values())).end_of_text
        self._mixture = Mixture(list(sources), reweighing, seed=seed, batch_size=batch_size)
        if position is None:
            position = np.zeros((readers, len(sources), len(COUNTERS)), np.int64)
        position = np.asarray(position, np.int64)
        if position.shape != (readers, len(sources), len(COUNTERS)):
            raise InputError(
                f"the saved position is of {position.shape[0]} readers and {position.shape[1]} sources, and this run "
                f"has {readers} and {len(sources)}; give the same data.readers, data.source and training.batch_size"
            )
        division, of = Division.by_hash(validation_fraction), {n: shares(s.parts, readers) for n, s in sources.items()}
        self._readers = [
            [
                Reader(
                    source, of[name], number, encodings[name], division=division, T=sequence_length,
                    block=max(1, shuffle_windows // readers), seed=(seed, s), counters=position[number, s],
                    filler=fillers.get(name) if part_of[number] in rows.first else None,
                )
                for s, (name, source) in enumerate(sources.items())
            ]
            for number in self._numbers
        ]  # fmt: skip
        self._nowhere = np.zeros_like(position)
        tokens = np.zeros((len(own), self._T + 1), np.int32)
        self.like = self._with_boundaries(tokens, np.zeros((len(tokens), self._T), bool))

    @property
    def position(self) -> np.ndarray:
        """Where the next batch comes from: int64 [readers, sources, 6], zeros for other processes' readers."""
        position = self._nowhere.copy()
        position[self._numbers] = [[reader.counters for reader in of_sources] for of_sources in self._readers]
        return position

    @property
    def counts(self) -> Counter:
        """Documents that this process's readers have read so far, "kept" and left out for each reason."""
        return sum((reader.counts for of_sources in self._readers for reader in of_sources), Counter())

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch of this process's rows, as of `dataset.train_batches`."""
        tokens, mask = np.empty_like(self.like["tokens"]), np.empty_like(self.like["mask"])
        chosen, _ = self._mixture.locate(self._step * self._batch_size + self._own)
        for row, source in enumerate(chosen.tolist()):
            tokens[row], learnt = self._readers[row // self._rows][source].next()
            mask[row] = learnt[1:]
        self._step += 1
        return self._with_boundaries(tokens, mask)

    def _with_boundaries(self, tokens: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
        return {"tokens": tokens, "mask": mask, **boundaries(tokens, self._end_of_text, **self._boundaries)}


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The validation text of a source that is streamed, in memory, to be read like a `Prepared`.

    Attributes:
      source: its name.
      tokenizer: the one that made the tokens.
      stream: int32 [n], documents followed by end-of-text.
      mask: bool [n], which tokens are learnt.
      size: UTF-8 bytes of the text that is learnt.
    """

    source: str
    tokenizer: Tokenizer
    stream: np.ndarray
    mask: np.ndarray
    size: int

    @classmethod
    def collect(
        cls, source: Source, encoding: Encoding, tokenizer: Tokenizer, *, fraction: float, tokens: int
    ) -> "HeldOut":
        """The first documents that validate, until there are so many tokens.

        Raises:
          InputError: the whole source has none.
        """
        division, sizes = Division.by_hash(fraction), []

        def documents() -> Iterator[Document]:
            for document in source.documents():
                if division.validates(document):
                    sizes.append(encoding.size(document))
                    yield document

        found, masks, size, count = [], [], 0, 0
        for encoded in encoding.encode(documents(), 1):
            found.append(encoded.tokens)
            masks.append(encoded.mask)
            size, count = size + sizes.pop(0), count + len(encoded.tokens)
            if count >= tokens:
                break
        if not found:
            raise InputError(
                f"none of the documents of {source.name} validates; raise data.validation_fraction ({fraction}), or "
                "use data.road=prepared, which divides a small corpus exactly"
            )
        return cls(source.name, tokenizer, np.concatenate(found), np.concatenate(masks), size)

    def tokens(self, split: str) -> list[np.ndarray]:
        """The tokens of the split "validation", the only one."""
        if split != "validation":
            raise InputError(f"the {split} split of {self.source} is streamed, and not held in memory")
        return [self.stream]

    def learnt(self, split: str) -> list[np.ndarray] | None:
        """As `Prepared.learnt`."""
        return None if self.mask.all() else [np.packbits(self.mask)]

    def bytes_per_token(self, split: str) -> float:
        """As `Prepared.bytes_per_token`."""
        return self.size / int(self.mask.sum())

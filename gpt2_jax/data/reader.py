"""What one reader of a stream reads: a share of a source, without end, as windows in blocks, each in a random order.

Where a reader stands is six numbers, and going on from them reads and encodes the present block once more:

    epoch, part, row   of the document that the block begins in, counted in the reader's share
    offset             tokens of that document before the block
    block              how many blocks came before
    taken              how many windows of this one
"""

import dataclasses
import itertools
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gpt2_jax.data.documents import Document, Part
from gpt2_jax.data.filling import Filler, PartFiller
from gpt2_jax.data.sources import Source
from gpt2_jax.data.tokenize import Division, Encoding
from gpt2_jax.errors import InputError

BATCH_CHARACTERS = 2**17  # encoded at once: the first batch waits for as many of each reader
COUNTERS = ("epoch", "part", "row", "offset", "block", "taken")


@dataclasses.dataclass(frozen=True)
class Share:
    """What one reader reads of a source.

    Attributes:
      parts: in the order of the source, in which the first of them is number `first`.
      sharers, index: of so many readers of the same parts this is the index-th; each row is one reader's.
    """

    parts: tuple[Part, ...]
    first: int = 0
    sharers: int = 1
    index: int = 0

    def owns(self, row: int) -> bool:
        """Whether the document that comes with `row` is this reader's; neighbours are not always others'."""
        return self.sharers == 1 or (row * 0x9E3779B1 >> 8) % self.sharers == self.index


def shares(parts: Sequence[Part], readers: int) -> list[Share]:
    """The shares of all readers: runs of whole parts, or, of fewer parts than readers, some rows of one part."""
    n = len(parts)
    if n >= readers:
        cuts = [n * r // readers for r in range(readers + 1)]
        return [Share(tuple(parts[a:b]), a) for a, b in itertools.pairwise(cuts)]
    of = [r * n // readers for r in range(readers)]
    return [Share((parts[p],), p, of.count(p), of[:r].count(p)) for r, p in enumerate(of)]


class Read(NamedTuple):
    """A document that a reader has read.

    Attributes:
      place: epoch, part and row to read it again from.
      document: itself.
      trains: whether its tokens are this reader's to give.
      filler: what else gets them, or None.
    """

    place: tuple[int, int, int]
    document: Document
    trains: bool
    filler: PartFiller | None


class Reader:
    """The training windows of one share of a source, without end.

    Args:
      source: for its name in errors.
      all_shares: of all readers; this one reads `all_shares[number]`, or, where that holds no document, the next that
        does.
      encoding: how documents become tokens.
      division: which documents validate, and are left out.
      T: tokens predicted in a window.
      block: windows among which the order is random.
      seed: of that order, and of the order of the parts in each epoch.
      counters: where to begin, see the module; zeros are the beginning.
      filler: gets the tokens of the parts that are read from beginning to end.
    """

    def __init__(
        self,
        source: Source,
        all_shares: Sequence[Share],
        number: int,
        encoding: Encoding,
        *,
        division: Division,
        T: int,
        block: int,
        seed: Sequence[int],
        counters: Sequence[int] = (0,) * len(COUNTERS),
        filler: Filler | None = None,
    ):
        self._source, self._shares, self._number, self._encoding = source, all_shares, number, encoding
        self._division, self._T, self._size, self._seed = division, T, block, tuple(seed)
        self._start = tuple(int(x) for x in counters[:3])
        self._offset, self._block, self._taken = (int(x) for x in counters[3:])
        if self._taken > block:
            raise self._nowhere()
        self._filler, self._counts, self._of_part = filler, Counter(), Counter()
        self._encoded = self._read(*self._start)
        self._failure: InputError | None = None
        self._buffer: list[tuple[tuple[int, int, int], np.ndarray, np.ndarray]] = []
        self._buffered = 0  # tokens
        self._windows: np.ndarray | None = None

    @property
    def counters(self) -> tuple[int, ...]:
        """Where the next window comes from."""
        return (*self._start, self._offset, self._block, self._taken)

    @property
    def counts(self) -> Counter:
        """Documents read so far, "kept" and left out for each reason; of shared parts the first reader's alone."""
        return self._counts + self._of_part

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """A window, int32 [T + 1], and which of its tokens are learnt, bool [T + 1]."""
        if self._windows is None:
            self._fill()
        if self._taken == self._size:
            self._go_on()
            self._fill()
        at = self._order[self._taken]
        self._taken += 1
        # As much of the next block as was taken of this one: no batch waits until a whole block is read.
        self._read_to(self._offset + (self._size + self._taken) * self._T + 1, needed=False)
        return self._windows[at], self._learnt[at]

    def _read_to(self, tokens: int, needed: bool = True) -> None:
        while self._buffered < tokens and self._failure is None:
            try:
                self._buffer.append(next(self._encoded))
            except InputError as error:
                self._failure = error
            else:
                self._buffered += len(self._buffer[-1][1])
        if self._buffered < tokens and needed:
            raise self._failure

    def _fill(self) -> None:
        self._read_to(1)
        if self._offset >= len(self._buffer[0][1]):  # before the corpus is read as far as that
            raise self._nowhere()
        end = self._offset + self._size * self._T + 1
        self._read_to(end)
        first, there = [], 0
        for encoded in self._buffer:
            if there >= end:
                break
            first.append(encoded)
            there += len(encoded[1])
        cut = lambda arrays: np.lib.stride_tricks.sliding_window_view(
            np.concatenate(arrays)[self._offset : end], self._T + 1
        )[:: self._T]
        self._windows = cut([tokens for _, tokens, _ in first])
        self._learnt = cut([learnt for _, _, learnt in first])
        # The raw bits: numpy promises that they stay the same in its later versions.
        bits = np.random.PCG64([*self._seed, self._number, self._block]).random_raw(self._size)
        self._order = np.argsort(bits, kind="stable")

    def _nowhere(self) -> InputError:
        where = ", ".join(f"{name} {value}" for name, value in zip(COUNTERS, self.counters))
        return InputError(
            f"the saved position in {self._source.name} ({where}) is none that a reader comes to; use another "
            "checkpoint, or start anew in another --workdir"
        )

    def _go_on(self) -> None:
        """To the next block, which begins with the last token of this one."""
        self._offset += self._size * self._T
        while self._offset >= len(self._buffer[0][1]):
            gone = len(self._buffer.pop(0)[1])
            self._offset, self._buffered = self._offset - gone, self._buffered - gone
        self._start = self._buffer[0][0]
        self._block, self._taken = self._block + 1, 0

    def _read(self, *start: int) -> Iterator[tuple[tuple[int, int, int], np.ndarray, np.ndarray]]:
        """Encoded documents from there on, each with where it begins."""
        waiting: deque[Read] = deque()

        def documents() -> Iterator[Document]:
            for read in self._documents(*start):
                waiting.append(read)
                yield read.document

        for encoded in self._encoding.encode(documents(), BATCH_CHARACTERS):
            read = waiting.popleft()
            if read.filler is not None:
                read.filler.add(encoded)
            if read.trains:
                yield read.place, encoded.tokens, encoded.mask

    def _documents(self, epoch: int, part: int, row: int) -> Iterator[Read]:
        found = False
        for share in (*self._shares[self._number :], *self._shares[: self._number]):
            # From a saved place on, a share that has something there is the one that it was saved of.
            for read in self._epoch(share, epoch, part, row):
                found |= read.trains
                yield read
            if found:
                break
        else:
            if part or row:
                raise self._nowhere()
            raise InputError(
                f"{self._source.name} has no document to train on; loosen the filters (data.min_characters and "
                "others), lower data.validation_fraction, or give more text"
            )
        while True:
            epoch += 1
            yield from self._epoch(share, epoch, 0, 0)

    def _epoch(self, share: Share, epoch: int, part: int, row: int) -> Iterator[Read]:
        bits = np.random.PCG64([*self._seed, self._number, epoch]).random_raw(len(share.parts))
        for p, at in list(enumerate(np.argsort(bits, kind="stable").tolist()))[part:]:
            start = row if p == part else 0
            filler = self._filler.part(share.first + at) if self._filler is not None and start == 0 else None
            counts = Counter()
            if share.index == 0:
                self._counts, self._of_part = self.counts, counts
            for after, document in share.parts[at].documents(start, counts):
                validates = self._division.validates(document)
                if filler is not None:
                    filler.expect(document, validates)
                if filler is not None or (share.owns(after) and not validates):
                    yield Read((epoch, p, start), document, not validates, filler)
                start = after
            if filler is not None:
                filler.end(counts)

"""Prepared tokens to batches: `{"tokens": int32 [B, T+1], "mask": bool [B, T]}`, mask True where a prediction counts.

Where documents are told apart, windows.py adds `segments` and `positions`, int32 [B, T]. Training order is a function
of (seed, step), so a run resumes at any step at once and without a buffer to restore.
"""

import bisect
import functools
import itertools
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gpt2_jax.data.mixture import Mixture
from gpt2_jax.data.prepared import Prepared
from gpt2_jax.data.rows import ALL, Rows
from gpt2_jax.data.stream import HeldOut, Stream
from gpt2_jax.data.tensorflow import tf
from gpt2_jax.data.windows import boundaries
from gpt2_jax.errors import InputError

PREFETCHED_CHUNKS = 4
PREFETCHED_BATCHES = 4  # of a stream
CHUNK_WINDOWS = 128  # small batches are made several at once: a call from TensorFlow costs as much as ten windows

Batch = dict[str, np.ndarray]


class TokenStream:
    """The shards of a split as one sequence, left on disk."""

    def __init__(self, shards: Sequence[np.ndarray]):
        self._shards = [np.asarray(shard) for shard in shards]  # plain views slice faster than memmaps
        self._ends = list(itertools.accumulate(map(len, shards)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, row: np.ndarray) -> int:
        """Fills `row` with what begins at `start`, as far as there is something: returns how far."""
        done, k = 0, bisect.bisect_right(self._ends, start)
        while done < len(row) and k < len(self._shards):
            begin = self._ends[k - 1] if k else 0
            stop = min(start + len(row), self._ends[k])
            row[done : stop - start] = self._cut(k, start + done - begin, stop - begin)
            done, k = stop - start, k + 1
        return done

    def _cut(self, k: int, start: int, stop: int) -> np.ndarray:
        return self._shards[k][start:stop]


class LearntStream(TokenStream):
    """Which tokens of a `TokenStream` are learnt, of `Prepared.learnt`'s bits."""

    def __init__(self, tokens: TokenStream, bits: Sequence[np.ndarray]):
        self._shards, self._ends = [np.asarray(shard) for shard in bits], tokens._ends

    def _cut(self, k: int, start: int, stop: int) -> np.ndarray:
        bits = np.unpackbits(self._shards[k][start // 8 : -(-stop // 8)])
        return bits[start % 8 : start % 8 + stop - start]


def open_split(prepared: Prepared | HeldOut, split: str) -> tuple[TokenStream, LearntStream | None]:
    """The tokens of a split, and which of them are learnt (None: all)."""
    tokens, learnt = TokenStream(prepared.tokens(split)), prepared.learnt(split)
    return tokens, None if learnt is None else LearntStream(tokens, learnt)


class Grid:
    """The training windows of one source: each epoch lays them T apart from a random offset on.

    Args:
      prepared: its tokens.
      name: for errors; "" of a source that is alone.
      T: tokens predicted in a window.
      seed: of the offsets, a tuple of integers.

    Raises:
      InputError: a training split shorter than one window.
    """

    def __init__(self, prepared: Prepared, name: str, T: int, seed: tuple[int, ...]):
        self.tokens, self.learnt = open_split(prepared, "train")
        n = len(self.tokens)
        if n < T + 1:
            raise InputError(
                f"the training split {f'of {name} ' if name else ''}has {n} tokens; training.sequence_length is {T} and"
                f" needs at least {T + 1}: use --config.training.sequence_length={max(1, n - 1)} or less, or more text"
            )
        self.per_epoch = max(1, (n - T) // T)
        self._T, self._seed, self._offsets = T, seed, min(T, n - self.per_epoch * T)
        self._offset = functools.lru_cache(maxsize=8)(self._draw_offset)

    def start(self, epoch: int, position: int) -> int:
        """Where in the split a window of an epoch begins."""
        return position * self._T + self._offset(epoch)

    def _draw_offset(self, epoch: int) -> int:
        seed, *rest = self._seed
        return int(np.random.default_rng([seed, epoch, *rest]).integers(self._offsets))


def train_batches(
    sources: Prepared | Mapping[str, Prepared],
    *,
    batch_size: int,
    sequence_length: int,
    seed: int,
    start_step: int = 0,
    rows: Rows = ALL,
    reweighing: Sequence[tuple[int, Mapping[str, float]]] = (),
    mask_documents: bool = False,
    restart_positions: bool = False,
) -> Iterator[Batch]:
    """Batches of shuffled windows of the training split, without end.

    Each epoch of a source visits every window of a `Grid` once. Batch k is the same for every `start_step <= k`, and
    of it come the rows asked for.

    Args:
      sources: prepared tokens; several, by name and of one tokenizer, are a mixture.
      batch_size: rows of the global batch.
      sequence_length: tokens predicted per row, T.
      seed: of the offsets and of the order.
      start_step: the first batch.
      rows: of the global batch, those of this process.
      reweighing: the weights of a mixture, see `Mixture`.
      mask_documents, restart_positions: see `DataConfig`; each adds its entry to the batches.

    Raises:
      InputError: a training split shorter than one window, weights that cannot be met, or a batch that the processes
        cannot share.
    """
    own, T = rows.of(batch_size), sequence_length
    named = sources if isinstance(sources, Mapping) else {"": sources}
    alone = len(named) == 1
    # The number of the source is 0 for one that is alone, which numpy's seeds do not tell from none.
    grids = [Grid(p, "" if alone else name, T, (seed, k)) for k, (name, p) in enumerate(named.items())]
    mixture = None if alone else Mixture(list(named), reweighing, seed=seed, batch_size=batch_size)
    end_of_text = next(iter(named.values())).tokenizer.end_of_text
    masked = any(grid.learnt is not None for grid in grids)
    per_epoch = tf.constant([grid.per_epoch for grid in grids], tf.int64)
    chunk = max(1, CHUNK_WINDOWS // len(own))  # batches

    def gather(of: np.ndarray, epochs: np.ndarray, positions: np.ndarray) -> list[np.ndarray]:
        tokens = np.empty((len(of), T + 1), np.int32)
        mask = np.ones((len(of), T), bool)
        for i, (k, epoch, position) in enumerate(zip(of.tolist(), epochs.tolist(), positions.tolist())):
            grid = grids[k]
            start = grid.start(epoch, position)
            grid.tokens.read(start, tokens[i])
            if grid.learnt is not None:
                grid.learnt.read(start + 1, mask[i])
        more = boundaries(tokens, end_of_text, mask_documents=mask_documents, restart_positions=restart_positions)
        return [tokens, *([mask] if masked else []), *more.values()]

    kinds = {"tokens": tf.int32} | ({"mask": tf.bool} if masked else {})
    kinds |= {"segments": tf.int32} if mask_documents else {}
    kinds |= {"positions": tf.int32} if restart_positions else {}

    def batches_from(step: tf.Tensor) -> list[tf.Tensor]:
        steps = step + tf.range(chunk, dtype=tf.int64)
        examples = steps[:, None] * batch_size + own
        examples = tf.reshape(examples, [chunk * len(own)])
        of, numbers = tf.zeros_like(examples), examples
        if mixture is not None:
            of, numbers = tf.numpy_function(mixture.locate, [examples], [tf.int64, tf.int64], stateful=False)
            of, numbers = tf.ensure_shape(of, examples.shape), tf.ensure_shape(numbers, examples.shape)
        size = tf.gather(per_epoch, of)
        epochs = numbers // size
        # The raw op shuffles every index with its own seed; tf.random.experimental.index_shuffle takes one seed a call.
        positions = tf.raw_ops.RandomIndexShuffle(
            index=numbers % size,
            seed=tf.stack([tf.fill(examples.shape, tf.constant(seed, tf.int64)), epochs, of], axis=1),
            max_index=size - 1,
            rounds=4,
        )
        return tf.numpy_function(gather, [of, epochs, positions], list(kinds.values()), stateful=False)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1  # the cores are for the training step
    options.autotune.enabled = False
    chunks = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max // batch_size - chunk, chunk)
    chunks = chunks.map(batches_from).prefetch(PREFETCHED_CHUNKS).with_options(options).as_numpy_iterator()

    def batches() -> Iterator[Batch]:
        for arrays in chunks:
            for first in range(0, chunk * len(own), len(own)):
                batch = {name: array[first : first + len(own)] for name, array in zip(kinds, arrays)}
                yield batch if masked else {"mask": np.ones((len(own), T), bool), **batch}

    return batches()


class StreamedBatches:
    """The batches of a `Stream`, made while the steps before run.

    Attributes:
      position: `Stream.position` after the batch given last; the ones made since are not counted.
      counts: `Stream.counts`, of all that was read.
    """

    def __init__(self, stream: Stream):
        self.position, self.counts = stream.position, Counter()
        self._failure: Exception | None = None
        spec = lambda x: tf.TensorSpec(x.shape, tf.as_dtype(x.dtype))
        signature = {name: spec(x) for name, x in stream.like.items()}, spec(self.position)

        def batches() -> Iterator[tuple[Batch, np.ndarray]]:
            try:
                for batch in stream:
                    self.counts = stream.counts
                    yield batch, stream.position
            except Exception as error:  # given to whoever waits for the next batch, not to TensorFlow
                self._failure = error

        batches_ahead = tf.data.Dataset.from_generator(batches, output_signature=signature)
        self._batches = batches_ahead.prefetch(PREFETCHED_BATCHES).as_numpy_iterator()
        self._known: deque[tuple[Batch, np.ndarray]] = deque()
        self._ended = False

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          InputError: the source failed.
        """
        self._look_ahead(1)
        if not self._known:
            raise self._failure
        batch, self.position = self._known.popleft()
        return batch

    def remaining(self, ahead: int) -> int | None:
        """How many batches are left where fewer than `ahead` are, because the source failed; else None."""
        self._look_ahead(ahead)
        return len(self._known) if len(self._known) < ahead else None

    def close(self) -> None:
        """Ends what makes batches ahead, which must not outlive the interpreter."""
        self._batches = iter(())

    def _look_ahead(self, batches: int) -> None:
        while len(self._known) < batches and not self._ended:
            found = next(self._batches, None)
            if found is None:
                self._ended = True
            else:
                self._known.append(found)


def evaluation_batches(
    prepared: Prepared | HeldOut,
    *,
    batch_size: int,
    sequence_length: int,
    windows: int = 0,
    rows: Rows = ALL,
    mask_documents: bool = False,
    restart_positions: bool = False,
) -> Iterator[Batch]:
    """The validation split in order, once: every token but the first is predicted in exactly one window.

    What the last window and the last batch lack is token 0 with mask False; all processes get as many batches.

    Args:
      batch_size: rows of the global batch.
      sequence_length: tokens predicted per row, T.
      windows: take only so many windows, evenly spread; 0 takes all.
      rows: as in `train_batches`.
      mask_documents, restart_positions: as in `train_batches`.

    Raises:
      InputError: fewer than two validation tokens, or a batch that the processes cannot share.
    """
    own, T = rows.of(batch_size), sequence_length
    stream, learnt = open_split(prepared, "validation")
    if len(stream) < 2:
        raise InputError(
            f"the validation split has {len(stream)} token, and predicting needs 2: use more text or a larger"
            " --config.data.validation_fraction"
        )
    total = -(-(len(stream) - 1) // T)
    chosen = np.linspace(0, total - 1, windows).round().astype(int) if 0 < windows < total else np.arange(total)
    end_of_text = prepared.tokenizer.end_of_text

    def batches() -> Iterator[Batch]:
        for first in range(0, len(chosen), batch_size):
            tokens, mask = np.zeros((len(own), T + 1), np.int32), np.zeros((len(own), T), bool)
            for row, window in enumerate(chosen[first : first + batch_size][own[own < len(chosen) - first]].tolist()):
                found = stream.read(window * T, tokens[row])
                mask[row, : found - 1] = True
                if learnt is not None:
                    learnt.read(window * T + 1, mask[row])
            more = boundaries(tokens, end_of_text, mask_documents=mask_documents, restart_positions=restart_positions)
            yield {"tokens": tokens, "mask": mask, **more}

    return batches()

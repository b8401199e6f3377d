"""Tokens to batches: `{"tokens": int32 [B, T+1], "mask": bool [B, T]}`, True where a predicted token counts.

Training order is a function of (seed, step), so a run resumes at any step at once and without a buffer to restore.
The only module of the package that imports TensorFlow, which it keeps away from accelerators.
"""

import functools
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from gpt2_jax.data.prepared import Prepared
from gpt2_jax.errors import InputError

tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")

PREFETCHED_BATCHES = 4


class TokenStream:
    """The shards of a split as one sequence of tokens, left on disk."""

    def __init__(self, prepared: Prepared, split: str):
        self._shards = [np.asarray(shard) for shard in prepared.tokens(split)]  # plain views slice faster than memmaps
        self._ends = np.cumsum([len(shard) for shard in self._shards])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def window(self, start: int, length: int) -> np.ndarray:
        """Tokens `start` to `start + length` [length]; fewer at the end."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        parts = []
        for shard, end in zip(self._shards[first:], self._ends[first:]):
            offset = start - int(end) + len(shard)
            parts.append(shard[offset : offset + length])
            start, length = start + len(parts[-1]), length - len(parts[-1])
            if length == 0:
                break
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Whole windows from `starts` [B]: int32 [B, length]."""
        rows = np.empty((len(starts), length), np.int32)
        for row, start in zip(rows, starts.tolist()):
            row[:] = self.window(start, length)
        return rows


def train_batches(
    prepared: Prepared,
    *,
    batch_size: int,
    sequence_length: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of shuffled windows of the training split, without end.

    Each epoch lays a grid of windows, `sequence_length` apart, at a random offset, and visits each window once. Batch
    k is the same for every `start_step <= k` and every `process_count`, whose processes get consecutive rows of it.

    Args:
      batch_size: rows of the global batch; this process gets `batch_size / process_count` of them.
      sequence_length: tokens predicted per row, T.
      seed: of the offsets and of the order.
      start_step: the first batch.

    Raises:
      InputError: a training split shorter than one window, or a batch that the processes cannot share.
    """
    rows = _rows(batch_size, process_index, process_count)
    stream, T = TokenStream(prepared, "train"), sequence_length
    if len(stream) < T + 1:
        raise InputError(
            f"the training split has {len(stream)} tokens; training.sequence_length is {T} and needs at least {T + 1}:"
            " use a shorter context (--config.model.n_positions=...) or more text"
        )
    per_epoch = max(1, (len(stream) - T) // T)
    offsets = min(T, len(stream) - per_epoch * T)

    @functools.lru_cache(maxsize=8)
    def grid_offset(epoch: int) -> int:
        return int(np.random.default_rng([seed, epoch]).integers(offsets))

    def gather(epochs: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return stream.windows(positions * T + list(map(grid_offset, epochs.tolist())), T + 1)

    def batch(step: tf.Tensor) -> tf.Tensor:
        examples = step * batch_size + tf.range(rows.start, rows.stop, dtype=tf.int64)
        epochs = examples // per_epoch
        # The raw op shuffles every index with its own seed; tf.random.experimental.index_shuffle takes one seed a call.
        positions = tf.raw_ops.RandomIndexShuffle(
            index=examples % per_epoch,
            seed=tf.stack([tf.fill([len(rows)], tf.constant(seed, tf.int64)), epochs, tf.zeros_like(epochs)], axis=1),
            max_index=tf.constant(per_epoch - 1, tf.int64),
            rounds=4,
        )
        return tf.numpy_function(gather, [epochs, positions], tf.int32, stateful=False)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1  # the cores are for the training step
    options.autotune.enabled = False
    batches = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max // batch_size)
    batches = batches.map(batch).prefetch(PREFETCHED_BATCHES).with_options(options)
    return ({"tokens": tokens, "mask": np.ones((len(rows), T), bool)} for tokens in batches.as_numpy_iterator())


def evaluation_batches(
    prepared: Prepared,
    *,
    batch_size: int,
    sequence_length: int,
    windows: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """The validation split in order, once: every token but the first is predicted in exactly one window.

    What the last window and the last batch lack is token 0 with mask False; all processes get as many batches.

    Args:
      batch_size: rows of the global batch; this process gets `batch_size / process_count` of them.
      sequence_length: tokens predicted per row, T.
      windows: take only so many windows, evenly spread; 0 takes all.

    Raises:
      InputError: fewer than two validation tokens, or a batch that the processes cannot share.
    """
    rows = _rows(batch_size, process_index, process_count)
    stream, T = TokenStream(prepared, "validation"), sequence_length
    if len(stream) < 2:
        raise InputError(
            f"the validation split has {len(stream)} token, and predicting needs 2: use more text or a larger"
            " --config.data.validation_fraction"
        )
    total = -(-(len(stream) - 1) // T)
    chosen = np.linspace(0, total - 1, windows).round().astype(int) if 0 < windows < total else np.arange(total)

    def batches() -> Iterator[dict[str, np.ndarray]]:
        for first in range(0, len(chosen), batch_size):
            tokens, mask = np.zeros((len(rows), T + 1), np.int32), np.zeros((len(rows), T), bool)
            for row, window in enumerate(chosen[first + rows.start : min(first + rows.stop, len(chosen))].tolist()):
                found = stream.window(window * T, T + 1)
                tokens[row, : len(found)] = found
                mask[row, : len(found) - 1] = True
            yield {"tokens": tokens, "mask": mask}

    return batches()


def _rows(batch_size: int, process_index: int, process_count: int) -> range:
    """This process's rows of the global batch."""
    if batch_size % process_count:
        raise InputError(
            f"batch_size is {batch_size}; it must be a multiple of the number of processes ({process_count}), which"
            " share it: change --config.training.batch_size or --config.evaluation.batch_size"
        )
    size = batch_size // process_count
    return range(process_index * size, (process_index + 1) * size)

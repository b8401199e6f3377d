"""Batches from token shards with tf.data; the one module of this package that imports TensorFlow for data.

A batch is `{"tokens": int32 [B, T + 1], "mask": bool [B, T]}` as training/step.py takes it, and a function of
(seed, step) alone: nothing about the order needs to be saved, and starting at any step is immediate.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from gpt2_jax.data.tokenize import Prepared
from gpt2_jax.errors import InputError

tf.config.set_visible_devices([], "GPU")

Batch = dict[str, np.ndarray]


class Windows:
    """The tokens of a split as one array over its memory-mapped shards."""

    def __init__(self, prepared: Prepared, split: str):
        self._shards = prepared.shards(split)
        self._starts = np.cumsum([0] + [len(shard) for shard in self._shards])
        self.count = int(self._starts[-1])

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int32 [len(starts), length]: windows that may cross shards; past the end come zeros."""
        rows = np.zeros((len(starts), length), np.int32)
        for row, start in zip(rows, starts.tolist()):
            shard = int(np.searchsorted(self._starts, start, side="right")) - 1
            filled = 0
            while filled < length and shard < len(self._shards):
                part = self._shards[shard][start + filled - self._starts[shard] :][: length - filled]
                row[filled : filled + len(part)] = part
                filled += len(part)
                shard += 1
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
) -> Iterator[Batch]:
    """Endless shuffled batches of the training split.

    Each epoch lays a grid of windows over the corpus, at an offset of its own, and takes each window once, in a
    pseudo-random order computed from (seed, epoch).

    Args:
      prepared: the token shards.
      batch_size: B of all processes together.
      sequence_length: T.
      seed: of the order.
      start_step: the first batch's number.
      process_index, process_count: which B / process_count rows of each batch to yield.

    Raises:
      InputError: a context longer than the split, or a batch that the processes cannot share.
    """
    windows = Windows(prepared, "train")
    T, rows = sequence_length, _rows(batch_size, process_count)
    if windows.count < T + 1:
        raise InputError(
            f"the training split has {windows.count} tokens and a training.sequence_length of {T} needs {T + 1}; use a "
            "shorter one (--config.model.n_positions=... or --config.training.sequence_length=...) or more text"
        )
    # Offsets go from 0 to T - 1, fewer where the corpus is so short that a window would be lost.
    offsets = min(T, windows.count - T)
    per_epoch = (windows.count - offsets) // T
    seed = seed % 2**31

    def locate(example: tf.Tensor) -> tf.Tensor:
        epoch, position = example // per_epoch, example % per_epoch
        epoch_seed = tf.stack([tf.cast(seed, tf.int32), tf.cast(epoch, tf.int32)])
        window = tf.random.experimental.index_shuffle(position, seed=epoch_seed, max_index=per_epoch - 1)
        offset = tf.random.stateless_uniform([], epoch_seed, maxval=offsets, dtype=tf.int64)
        return offset + window * T

    def gather(starts: np.ndarray) -> np.ndarray:
        return windows.gather(starts, T + 1)

    # Example i of the whole run is row i % B of step i // B: this process's rows of each step, in order.
    step_starts = tf.data.Dataset.range(start_step * batch_size, np.iinfo(np.int64).max - batch_size, batch_size)
    first = process_index * rows
    examples = step_starts.flat_map(lambda start: tf.data.Dataset.range(start + first, start + first + rows))
    batches = examples.map(locate).batch(rows).map(lambda starts: tf.numpy_function(gather, [starts], tf.int32))
    mask = np.ones((rows, T), bool)
    for tokens in batches.with_options(_options()).prefetch(4).as_numpy_iterator():
        yield {"tokens": tokens, "mask": mask}


def evaluation_batches(
    prepared: Prepared,
    *,
    batch_size: int,
    sequence_length: int,
    windows: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """The same windows of the validation split each time: T predictions each, none of them twice.

    Args:
      prepared, batch_size, sequence_length, process_index, process_count: as in `train_batches`.
      windows: how many, spread evenly over the split; 0 takes all, which predicts each token but the first once.

    Yields:
      Batches of full size; positions and rows past the end have a mask of False.

    Raises:
      InputError: fewer than two validation tokens, or a batch that the processes cannot share.
    """
    tokens = Windows(prepared, "validation")
    T, rows = sequence_length, _rows(batch_size, process_count)
    if tokens.count < 2:
        raise InputError(
            f"the validation split has {tokens.count} token; at least 2 are needed: raise "
            "data.validation_fraction or add text"
        )
    starts = np.arange(0, tokens.count - 1, T)
    if 0 < windows < len(starts):
        starts = starts[np.arange(windows) * len(starts) // windows]
    for first in range(0, len(starts), batch_size):
        own = starts[first : first + batch_size][process_index * rows : (process_index + 1) * rows]
        batch = np.zeros((rows, T + 1), np.int32)
        mask = np.zeros((rows, T), bool)
        batch[: len(own)] = tokens.gather(own, T + 1)
        mask[: len(own)] = own[:, None] + np.arange(1, T + 1) < tokens.count
        yield {"tokens": batch, "mask": mask}


def _rows(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        raise InputError(
            f"a batch of {batch_size} sequences cannot be shared by {process_count} processes; use a multiple"
        )
    return batch_size // process_count


def _options() -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False
    options.threading.private_threadpool_size = 1  # the cores are the training step's
    options.threading.max_intra_op_parallelism = 1
    return options

"""The memory of rows that come and go: a ring of slots for keys and values, and one clock for all rows.

Every step writes the keys and values of all rows into the slot at the clock, by one update in place. A row's tokens lie
in the slots just behind it, wherever it stands, so what a row may attend to follows from its length alone. GPT-2 adds
its positions to embeddings, never to keys, which may therefore lie anywhere.

A row joins by reading its prompt into a scratch cache of its own, which is then turned until it ends at the clock.
Axes as in model.py; R rows at most, B of them in the cache (a power of two), S slots of the ring.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.attention import KVCache
from gpt2_jax.generation.logits import History
from gpt2_jax.generation.sampler import bucket
from gpt2_jax.model import GPT2

SMALLEST = 128  # slots
CHUNK = 128  # tokens of a prompt that are read at a time, so that other rows do not wait for long


class Ring:
    """The caches of all layers, and the clock.

    Attributes:
      batch: B.
      slots: S, at least as many as the longest row has tokens.
      chunk: tokens that `read` takes at most.
    """

    def __init__(self, model: GPT2, rows: int):
        """`rows` is R, a power of two; `model` is unstacked."""
        self._model, self._rows, self._context = model, rows, model.config.n_positions
        self.chunk = min(CHUNK, self._context)
        self._layers = jax.eval_shape(lambda model: model.prefill(jnp.zeros((1, 1), jnp.int32), 1)[1], model)
        self.clear()

    def clear(self) -> None:
        """One row, few slots, nothing in them."""
        self.batch, self.slots, self._clock = 1, self._slots(1), 0
        self._cache = self._empty(self.slots)
        self.forget()

    def forget(self) -> None:
        """Frees what was read last."""
        self._scratch: dict[int, list[KVCache]] = {}  # by their slots

    def read(self, tokens: Sequence[int], start: int) -> int:
        """Reads a chunk of a prompt's `tokens` from `start` on into the scratch cache; how many it has read then."""
        n = len(tokens)
        size = bucket(n, self.chunk)
        start = max(0, min(start, n - size))  # the last of several chunks is filled up with tokens before it
        part = np.zeros((1, size), np.int32)
        piece = tokens[start : start + size]
        part[0, : len(piece)] = piece
        slots = self._scratch_slots(n)
        cache = self._scratch.pop(slots, None) or self._empty(slots)
        self._scratch[slots] = list(_read(self._model, part, np.int32(start), cache))
        return start + len(piece)

    def place(self, row: int, length: int) -> None:
        """Gives `row` the prompt of `length` tokens that was read last."""
        source, shift = self._scratch[self._scratch_slots(length)], np.int32(self._clock - length)
        for i, layer in enumerate(self._cache):
            self._cache[i] = _place(layer, source[i], np.int32(row), shift)

    def step(self, history: History) -> jax.Array:
        """The newest tokens of the first B of R rows -> their states [B, C]; the clock goes on."""
        states, cache = _step(self._model, history, self._cache, np.int32(self._clock), batch=self.batch)
        self._cache, self._clock = list(cache), (self._clock + 1) % self.slots
        return states

    def resize(self, longest: int) -> None:
        """Makes room for texts of `longest` tokens; slots become fewer only where most are unused."""
        while self.slots < longest:
            self._turn(self._slots(self.slots + 1), self.slots)
        while self.slots > self._slots(4 * longest):
            self._turn(self._slots(self.slots // 2), 0)

    def grow(self) -> None:
        """Twice as many rows."""
        self._take(np.arange(2 * self.batch, dtype=np.int32) % self.batch)

    def shrink(self, order: np.ndarray) -> None:
        """Half as many rows: the first of `order`, int32 [any]."""
        self._take(order[: self.batch // 2])

    def _take(self, rows: np.ndarray) -> None:
        for i, layer in enumerate(self._cache):
            self._cache[i] = _take(layer, rows, batch=self.batch)
        self.batch = len(rows)

    def warm(self, history: History) -> None:
        """Compiles all that there is to run, and clears."""
        for size in {bucket(n, self.chunk) for n in range(1, self.chunk + 1)}:
            self.read([0] * size, 0)
        if self._context > self.chunk:
            self.read([0] * self._context, 0)
        sizes = sorted({self._slots(n) for n in range(1, self._context + 1)})
        while True:
            for slots in sizes:
                self.resize(slots)
                for slot in self._scratch:
                    self.place(0, min(slot, slots))
                self.step(history)
            self.resize(1)
            if self.batch == self._rows:
                break
            self.grow()
        for slots in sizes:
            self.resize(slots)
            while self.batch > 1:
                self.shrink(np.arange(self.batch, dtype=np.int32))
            while self.batch < self._rows:
                self.grow()
        jax.block_until_ready(self._cache)
        self.clear()

    def _turn(self, slots: int, clock: int) -> None:
        for i, layer in enumerate(self._cache):
            self._cache[i] = _turn(layer, np.int32(self._clock), slots=slots)
        self.slots, self._clock = slots, clock

    def _slots(self, longest: int) -> int:
        return min(self._context, max(SMALLEST, bucket(longest)))

    def _scratch_slots(self, length: int) -> int:
        return self.chunk if length <= self.chunk else self._context

    def _empty(self, slots: int) -> list[KVCache]:
        """Caches of one row, made without a program."""
        zeros = lambda x: jax.device_put(np.zeros((x.shape[0], slots, x.shape[2]), x.dtype), device(self._model))
        return [jax.tree.map(zeros, layer) for layer in self._layers]


def device(model: GPT2) -> jax.Device | None:
    """Where a model is, if on one device: what is made there finds the programs of what was computed there."""
    devices = jax.tree.leaves(model)[0].devices()
    return next(iter(devices)) if len(devices) == 1 else None


@functools.partial(jax.jit, donate_argnames="cache")
def _read(model: GPT2, tokens: jax.Array, start: jax.Array, cache: list[KVCache]) -> tuple[KVCache, ...]:
    """The cache of one row with `tokens` [1, T] at and after `start`."""
    positions = start + jnp.arange(tokens.shape[1])
    mask = jnp.arange(cache[0].slots) <= positions[:, None]  # [T, S]
    return model.decode(tokens, positions[None], mask[None], cache, start)[1]


@functools.partial(jax.jit, static_argnames="batch", donate_argnames="cache")
def _step(
    model: GPT2, history: History, cache: list[KVCache], clock: jax.Array, *, batch: int
) -> tuple[jax.Array, tuple[KVCache, ...]]:
    S, lengths = cache[0].slots, history.lengths[:batch]
    age = (clock - jnp.arange(S)) % S
    mask = age < lengths[:, None]  # [B, S]
    positions = jnp.minimum(lengths, model.config.n_positions)[:, None] - 1  # rows not in use may run out of them
    x, cache = model.decode(history.last(1)[:batch, None], positions, mask[:, None], cache, clock)
    return x[:, 0], cache


@functools.partial(jax.jit, donate_argnames="cache")
def _place(cache: KVCache, source: KVCache, row: jax.Array, shift: jax.Array) -> KVCache:
    """The cache whose `row` is that of `source`, turned by `shift` slots."""

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:
        H, slots, _ = part.shape
        part = jnp.pad(part[:, : whole.shape[1]], ((0, 0), (0, max(0, whole.shape[1] - slots)), (0, 0)))
        return jax.lax.dynamic_update_slice(whole, jnp.roll(part, shift, axis=1), (row * H, 0, 0))

    return jax.tree.map(put, cache, source)


@functools.partial(jax.jit, static_argnames="batch")
def _take(cache: KVCache, rows: jax.Array, *, batch: int) -> KVCache:
    return cache.select(rows, batch)


@functools.partial(jax.jit, static_argnames="slots")
def _turn(cache: KVCache, clock: jax.Array, *, slots: int) -> KVCache:
    """The cache in another number of slots: the newest of before end at the old number of slots, or at the new one."""

    def turn(x: jax.Array) -> jax.Array:
        x = jnp.roll(x, -clock, axis=1)[:, -slots:]  # from the oldest to the newest
        return jnp.pad(x, ((0, 0), (0, slots - x.shape[1]), (0, 0)))

    return jax.tree.map(turn, cache)

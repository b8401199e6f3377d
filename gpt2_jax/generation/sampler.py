"""Sampling: the prompts are read once, then one `while_loop` adds a token a turn. Axes as in decoding.py."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.generation.decoding import Decoding, last_state, prefill, step
from gpt2_jax.generation.logits import History
from gpt2_jax.generation.sampling import Sampling, pick
from gpt2_jax.model import GPT2

SMALLEST_BUCKET = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplerState:
    """What the loop carries; donated from turn to turn, so the cache is written in place."""

    count: jax.Array  # int32 []: new tokens so far
    tokens: jax.Array  # int32 [B, N]: the new tokens; from `count` on, and after an end-of-text, end-of-text
    done: jax.Array  # bool [B]: end-of-text was drawn
    keys: jax.Array  # [B] keys, one a row
    decoding: Decoding


def generate(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
    end_of_text: int,
    chunk: int | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Continues prompts; one item for every `chunk` new tokens of each row (None: all in one item).

    A row's draws depend on the seed, the row's index and the position alone, not on the rows beside it nor on `chunk`.

    Args:
      model: an unstacked model (`gpt2_jax.model.unstack`).
      prompts: token ids, at least one a prompt; the longest plus `max_new_tokens` must fit `n_positions`.
      max_new_tokens: where to stop, if end-of-text does not come first in every row.
      sampling: how a token is drawn.
      seed: of the draws.
      end_of_text: the id at which a row stops.
      chunk: new tokens between items.

    Yields:
      (int32 [B, n] the new tokens of this chunk, bool [B] whether the row is done); a done row goes on as end-of-text.
    """
    rows, lengths = pad_prompts(prompts, model.config.n_positions)
    start, advance = _compiled(bucket(max_new_tokens, model.config.n_positions), end_of_text)
    state = start(model, rows, lengths, sampling, np.uint32(seed % 2**32))
    shown = 0
    while shown < max_new_tokens:
        limit = min(max_new_tokens, shown + (chunk or max_new_tokens))
        state = advance(model, state, sampling, np.int32(limit))
        count, done = int(state.count), np.asarray(state.done)
        yield np.asarray(state.tokens)[:, shown:count], done
        shown = count
        if done.all():
            return


def bucket(length: int, largest: int) -> int:
    """The power of two at or above `length`, within `SMALLEST_BUCKET` and `largest`: few shapes, few compilations."""
    return min(largest, max(SMALLEST_BUCKET, 1 << (length - 1).bit_length()))


def pad_prompts(prompts: Sequence[Sequence[int]], n_positions: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts -> (int32 [B, P] padded with zeros on the right, int32 [B] lengths)."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    rows = np.zeros((len(prompts), bucket(int(lengths.max()), n_positions)), np.int32)
    for row, prompt in zip(rows, prompts):
        row[: len(prompt)] = prompt
    return rows, lengths


@functools.cache
def _compiled(capacity: int, end_of_text: int):
    """The two jitted functions for N = `capacity`, made once, so that every call finds what is compiled."""
    start_fn = functools.partial(start, capacity=capacity, end_of_text=end_of_text)
    advance_fn = functools.partial(advance, end_of_text=end_of_text)
    return jax.jit(start_fn), jax.jit(advance_fn, donate_argnums=1)


def start(
    model: GPT2, prompts: jax.Array, lengths: jax.Array, sampling: Sampling, seed: jax.Array,
    *, capacity: int, end_of_text: int,
) -> SamplerState:  # fmt: skip
    """Prefill: prompts [B, P] through the model once, then the first new token."""
    B = len(prompts)
    x, decoding = prefill(model, prompts, lengths, capacity)
    state = SamplerState(
        count=jnp.zeros((), jnp.int32),
        tokens=jnp.full((B, capacity), end_of_text, jnp.int32),
        done=jnp.zeros((B,), bool),
        keys=jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(B)),
        decoding=decoding,
    )
    return _add_token(state, model.head(last_state(x, lengths)), sampling, end_of_text)


def advance(
    model: GPT2, state: SamplerState, sampling: Sampling, limit: jax.Array, *, end_of_text: int
) -> SamplerState:
    """Adds tokens until there are `limit` of them or every row is done."""

    def unfinished(state: SamplerState) -> jax.Array:
        return (state.count < limit) & ~state.done.all()

    def turn(state: SamplerState) -> SamplerState:
        newest = jax.lax.dynamic_index_in_dim(state.tokens, state.count - 1, axis=1, keepdims=False)  # [B]
        x, decoding = step(model, newest, state.decoding)
        state = dataclasses.replace(state, decoding=decoding)
        return _add_token(state, model.head(x), sampling, end_of_text)

    return jax.lax.while_loop(unfinished, turn, state)


def _add_token(state: SamplerState, logits: jax.Array, sampling: Sampling, end_of_text: int) -> SamplerState:
    keys = jax.vmap(jax.random.fold_in)(state.keys, state.decoding.lengths + state.count)
    counts = jnp.full(len(logits), state.count)
    history = History(tokens=state.tokens, lengths=counts, prompt_lengths=jnp.zeros_like(counts))
    capacity = state.tokens.shape[1]
    token = pick(logits, sampling, history, keys, end_tokens=jnp.array([end_of_text]), limit=capacity)
    token = jnp.where(state.done, end_of_text, token)
    tokens = jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.count, axis=1)
    done = state.done | (token == end_of_text)
    return dataclasses.replace(state, count=state.count + 1, tokens=tokens, done=done)

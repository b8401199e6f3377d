"""Greedy decoding and sampling: the prompts are read once, then one `while_loop` adds a token a turn.

A row's draws are a function of its own key and the position alone, whatever rows stand beside it, however the prompts
are padded and the loop is cut into chunks. Axes as in decoding.py; R rows of the model: B, or 2 B with guidance, whose
second half reads the negative prompts.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.generation import chain
from gpt2_jax.generation.decoding import Decoding, last_state, prefill, step
from gpt2_jax.generation.logits import History
from gpt2_jax.generation.stopping import START
from gpt2_jax.model import GPT2

SMALLEST_BUCKET = 16
RUNNING, AT_END_TOKEN, AT_STOP_STRING = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules(chain.Rules):
    """What the loop obeys: other values compile nothing anew, only other things that are None do.

    Attributes:
      stop_table: int16 [states, V] of `stopping.stop_table`, or None.
      guidance_scale: float32 [], or None without negative prompts.
    """

    stop_table: jax.Array | None = None
    guidance_scale: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scores:
    """Log-probabilities under the model itself, before any control."""

    chosen: jax.Array  # float32 [B, N]: of the new tokens
    top: jax.Array  # float32 [B, N, n]: of the n most probable in their place
    top_tokens: jax.Array  # int32 [B, N, n]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What the loop carries; donated from turn to turn, so the cache is written in place."""

    history: History  # of R rows: tokens [R, S], the prompts and what was added, an end token included
    count: jax.Array  # int32 []: new tokens so far, of the rows still running
    ended: jax.Array  # int32 [B]: RUNNING, AT_END_TOKEN or AT_STOP_STRING
    matched: jax.Array  # int32 [B]: state of the stop strings' automaton
    keys: jax.Array  # [B] keys, one a row
    heads: jax.Array  # int32 [R]: tokens at the beginning of each text that stay when the context slides
    scores: Scores | None


def start_state(
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[tuple[int, int]],
    max_new_tokens: int,
    *,
    negative_prompts: Sequence[Sequence[int]] = (),
    heads: Sequence[int] = (),
    alternatives: int | None = None,
) -> State:
    """The state before the first new token.

    Args:
      prompts: token ids of each row, at least one.
      seeds: of each row, the seed and the row's own number, from which its draws follow.
      max_new_tokens: for which there must be room.
      negative_prompts: as many, or none.
      heads: how many tokens of each prompt, negative ones after the others, stay when the context slides; by default 0.
      alternatives: keep log-probabilities, and those of so many of the most probable tokens; None keeps none.
    """
    texts = [*prompts, *negative_prompts]
    lengths = np.array([len(text) for text in texts], np.int32)
    B, capacity = len(prompts), bucket(max_new_tokens)
    tokens = np.zeros((len(texts), bucket(int(lengths.max())) + capacity), np.int32)
    for row, text in zip(tokens, texts):
        row[: len(text)] = text
    seeds = np.array([(seed % 2**32, number) for seed, number in seeds], np.uint32)
    scores = None
    if alternatives is not None:
        top = np.zeros((B, capacity, alternatives), np.float32)
        scores = Scores(chosen=np.zeros((B, capacity), np.float32), top=top, top_tokens=top.astype(np.int32))
    return State(
        history=History(tokens=tokens, lengths=lengths, prompt_lengths=lengths.copy()),
        count=np.zeros((), np.int32),
        ended=np.full(B, RUNNING, np.int32),
        matched=np.full(B, START, np.int32),
        keys=row_keys(seeds),
        heads=np.array(heads or [0] * len(texts), np.int32),
        scores=scores,
    )


@jax.jit
def row_keys(seeds: jax.Array) -> jax.Array:
    """The key of each row's draws, from its seed and its own number, uint32 [B, 2]."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed[0]), seed[1]))(seeds)


def generate(model: GPT2, state: State, rules: Rules, *, chunk: int | None = None) -> Iterator[State]:
    """Continues the rows of `state` until `rules.limit` or the end of every row; a state every `chunk` new tokens.

    A row whose text has outgrown the model's context goes on from the later half of a context of it, read anew; the
    beginning of that is then the row's head.

    Args:
      model: an unstacked model (`gpt2_jax.model.unstack`).
    """
    context, limit = model.config.n_positions, int(rules.limit)
    capacity = bucket(limit, context)
    offsets = np.zeros(len(state.history.lengths), np.int32)  # where each row's window on its text begins
    shown = 0
    while True:
        lengths = np.asarray(state.history.lengths)
        kept = max(context // 2, int(state.heads.max()) + 1)
        offsets = np.where(lengths - offsets > context, lengths - kept, offsets)
        windows = lengths - offsets
        slots = bucket(int(windows.max()), context)
        state, decoding = fill(model, state, offsets, rules, slots=slots, capacity=capacity)
        running = np.tile(np.asarray(state.ended) == RUNNING, len(windows) // len(state.ended))
        full = int(state.count) + min(capacity, context - int(windows.max(initial=0, where=running)))
        while True:
            count = int(state.count)
            finished = count == limit or bool(np.all(state.ended != RUNNING))
            if finished or (chunk and count - shown >= chunk):
                shown = count
                yield state
            if finished:
                return
            if count == full:
                break
            until = min(limit, full, shown + chunk if chunk else limit)
            state, decoding = advance(model, state, decoding, rules, np.int32(until))


@functools.partial(jax.jit, static_argnames=("slots", "capacity"))
def fill(
    model: GPT2, state: State, offsets: jax.Array, rules: Rules, *, slots: int, capacity: int
) -> tuple[State, Decoding]:
    """Reads each row's text from `offsets` [R] on, and adds a token."""
    history = state.history
    place = jnp.arange(slots)
    place = place + jnp.where(place < state.heads[:, None], 0, offsets[:, None])
    window = jnp.minimum(place, history.tokens.shape[1] - 1)  # [R, P]
    lengths = history.lengths - offsets
    x, decoding = prefill(model, jnp.take_along_axis(history.tokens, window, axis=1), lengths, capacity)
    return _add_token(model, state, last_state(x, lengths), rules), decoding


@functools.partial(jax.jit, donate_argnames="decoding")
def advance(model: GPT2, state: State, decoding: Decoding, rules: Rules, until: jax.Array) -> tuple[State, Decoding]:
    """Adds tokens until there are `until` of them or every row has ended."""

    def unfinished(carry: tuple[State, Decoding]) -> jax.Array:
        state, _ = carry
        return (state.count < until) & (state.ended == RUNNING).any()

    def turn(carry: tuple[State, Decoding]) -> tuple[State, Decoding]:
        state, decoding = carry
        history = state.history
        newest = jnp.take_along_axis(history.tokens, history.lengths[:, None] - 1, axis=1)[:, 0]  # [R]
        x, decoding = step(model, newest, decoding)
        return _add_token(model, state, x, rules), decoding

    return jax.lax.while_loop(unfinished, turn, (state, decoding))


def _add_token(model: GPT2, state: State, x: jax.Array, rules: Rules) -> State:
    """Draws each row's next token from the states [R, C]; rows that have ended stay as they are."""
    B = len(state.ended)
    texts = jax.tree.map(lambda rows: rows[:B], state.history)
    all_logits = model.head(x)
    own = logits = all_logits[:B]
    if rules.guidance_scale is not None:
        logits = guide(own, all_logits[B:], rules.guidance_scale)
    keys = jax.vmap(jax.random.fold_in)(state.keys, texts.lengths)
    token = chain.pick(logits, rules.sampling, texts, keys, end_tokens=rules.end_tokens, limit=rules.limit)  # [B]

    running = state.ended == RUNNING
    place = texts.lengths - texts.prompt_lengths
    scores = state.scores and _score(state.scores, own, token, place, running)
    matched, ended = state.matched, jnp.where((token[:, None] == rules.end_tokens).any(1), AT_END_TOKEN, RUNNING)
    if rules.stop_table is not None:
        matched = rules.stop_table[matched, token].astype(jnp.int32)
        ended = jnp.where(matched == len(rules.stop_table) - 1, AT_STOP_STRING, ended)
    return dataclasses.replace(
        state,
        history=_append(state.history, token, running),
        count=state.count + 1,
        ended=jnp.where(running, ended, state.ended),
        matched=jnp.where(running, matched, state.matched),
        scores=scores,
    )


def guide(logits: jax.Array, negative: jax.Array, scale: jax.Array) -> jax.Array:
    """Classifier-free guidance for text (Sanchez et al., 2023): [B, V] away from `negative` [B, V]; 1 is off."""
    logits, negative = jax.nn.log_softmax(logits), jax.nn.log_softmax(negative)
    return jnp.maximum(negative + scale * (logits - negative), jnp.finfo(jnp.float32).min)


def _append(history: History, token: jax.Array, running: jax.Array) -> History:
    """The history with `token` [B] after the running rows, and after the same rows' negative prompts."""
    R, S = history.tokens.shape
    token, running = jnp.tile(token, R // len(token)), jnp.tile(running, R // len(running))
    place = jnp.where(running, history.lengths, S)  # past the end: dropped
    tokens = history.tokens.at[jnp.arange(R), place].set(token, mode="drop")
    return dataclasses.replace(history, tokens=tokens, lengths=history.lengths + running)


def _score(scores: Scores, logits: jax.Array, token: jax.Array, place: jax.Array, running: jax.Array) -> Scores:
    """Notes log-probabilities of `token` [B] at `place` [B]."""
    B, N, n = scores.top.shape
    total = jax.nn.logsumexp(logits, axis=-1)
    top, top_tokens = jax.lax.top_k(logits, n)
    at = (jnp.arange(B), jnp.where(running, place, N))  # past the end: dropped
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0] - total
    return Scores(
        chosen=scores.chosen.at[at].set(chosen, mode="drop"),
        top=scores.top.at[at].set(top - total[:, None], mode="drop"),
        top_tokens=scores.top_tokens.at[at].set(top_tokens, mode="drop"),
    )


def bucket(length: int, largest: int | None = None) -> int:
    """The power of two at or above `length`, within `SMALLEST_BUCKET` and `largest`: few shapes, few compilations."""
    size = max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())
    return size if largest is None else min(largest, size)

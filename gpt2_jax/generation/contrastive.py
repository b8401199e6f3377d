"""Contrastive search (Su et al., 2022): of the k most probable tokens the one least like what came before.

A token's worth is (1 - alpha) p - alpha s, where p is its probability and s the highest cosine similarity of its state
with those of the text. Axes as in decoding.py; k candidates a row.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.generation import chain
from gpt2_jax.generation.decoding import Decoding, last_state, prefill, step
from gpt2_jax.generation.logits import History
from gpt2_jax.generation.pausing import Pausing
from gpt2_jax.generation.sampler import bucket, start_state
from gpt2_jax.generation.sampling import Sampling
from gpt2_jax.model import GPT2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules(chain.Rules):
    """What the search obeys."""

    alpha: jax.Array  # float32 []


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What the loop carries."""

    count: jax.Array  # int32 []: new tokens so far
    history: History  # of B rows
    ended: jax.Array  # bool [B]: the last token is an end token
    last: jax.Array  # [B, C]: the state of each row's last token
    states: jax.Array  # float32 [B, S, C]: the states of all its tokens, of length 1; 0 where there is none
    decoding: Decoding  # of B * k rows, each row's candidates beside each other
    origin: jax.Array  # int32 [B * k]: the rows of the memory that the candidates go on from


def search(
    model: GPT2,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    penalty_alpha: float,
    top_k: int,
    sampling: Sampling,
    end_tokens: np.ndarray,
    chunk: int | None = None,
) -> Pausing[list[np.ndarray]]:
    """Continues each prompt.

    Args:
      model: an unstacked model (`gpt2_jax.model.unstack`).
      prompts: token ids; each and `max_new_tokens` together must fit `n_positions`.
      max_new_tokens: where to stop, if no end token comes first.
      penalty_alpha: alpha, in (0, 1].
      top_k: candidates a step; another number compiles anew, for they are rows of the model.
      sampling: controls of the logits; its temperature and filters are not used.
      end_tokens: int32 [E], the ids that end a text; -1 is none.
      chunk: pause after so many tokens; None does not.

    Returns:
      The new tokens of each prompt, int32 [n], an end token included.

    Raises:
      InputError: alpha or top_k out of range, or a mix of models.
    """
    if not isinstance(model, GPT2):
        raise InputError(
            f"penalty_alpha is {penalty_alpha} with a mix of models; contrastive search compares the states of "
            "one: sample, or search with num_beams"
        )
    if not 0 < penalty_alpha <= 1:
        raise InputError(f"penalty_alpha is {penalty_alpha}; it must be in (0, 1], or 0 for no contrastive search")
    if not 2 <= top_k <= model.config.vocab_size:
        raise InputError(
            f"top_k is {top_k} beside penalty_alpha; contrastive search needs from 2 to {model.config.vocab_size} "
            "candidates, such as 4"
        )
    start = start_state(prompts, [(0, 0)] * len(prompts), max_new_tokens)
    slots = bucket(int(start.history.lengths.max()), model.config.n_positions)
    rules = Rules(
        sampling, np.asarray(end_tokens, np.int32), limit=np.int32(max_new_tokens), alpha=np.float32(penalty_alpha)
    )
    state = _fill(model, start.history, slots=slots, capacity=bucket(max_new_tokens), top_k=top_k)
    while (count := int(state.count)) < max_new_tokens and not np.all(state.ended):
        until = np.int32(min(max_new_tokens, count + chunk) if chunk else max_new_tokens)
        state = _advance(model, state, rules, until, top_k=top_k)
        yield
    history = state.history
    tokens, lengths, starts = map(np.asarray, (history.tokens, history.lengths, history.prompt_lengths))
    return [row[first:end] for row, first, end in zip(tokens, starts, lengths)]


@functools.partial(jax.jit, static_argnames=("slots", "capacity", "top_k"))
def _fill(model: GPT2, prompts: History, *, slots: int, capacity: int, top_k: int) -> State:
    """Reads the prompts."""
    x, decoding = prefill(model, prompts.tokens[:, :slots], prompts.lengths, capacity)
    B, S = prompts.tokens.shape
    there = jnp.arange(slots) < prompts.lengths[:, None]
    states = jnp.zeros((B, S, x.shape[-1])).at[:, :slots].set(jnp.where(there[..., None], _unit(x), 0.0))
    return State(
        count=jnp.zeros((), jnp.int32),
        history=prompts,
        ended=jnp.zeros(B, bool),
        last=last_state(x, prompts.lengths),
        states=states,
        decoding=decoding.select(jnp.repeat(jnp.arange(B), top_k)),
        origin=jnp.arange(B * top_k),
    )


@functools.partial(jax.jit, static_argnames="top_k", donate_argnames="state")
def _advance(model: GPT2, state: State, rules: Rules, until: jax.Array, *, top_k: int) -> State:
    """Adds tokens until there are `until` of them, or every row has ended."""
    B, S = state.history.tokens.shape
    rows, end_tokens = jnp.arange(B), rules.end_tokens

    def unfinished(state: State) -> jax.Array:
        return (state.count < until) & ~state.ended.all()

    def turn(state: State) -> State:
        logits = model.head(state.last)
        logits = chain.process(logits, rules.sampling, state.history, end_tokens=end_tokens, limit=rules.limit)
        probability, token = jax.lax.top_k(jax.nn.softmax(logits), top_k)  # [B, k]
        x, decoding = step(model, token.reshape(-1), state.decoding.reorder(state.origin))
        unit = _unit(x).reshape(B, top_k, -1)
        likeness = jnp.einsum("bkc,bsc->bks", unit, state.states)
        written = jnp.arange(S) < state.history.lengths[:, None]
        likeness = jnp.where(written[:, None], likeness, -1.0).max(-1)
        worth = (1 - rules.alpha) * probability - rules.alpha * likeness
        # Where bans leave fewer than k tokens, a banned one may be the least like the text.
        best = jnp.argmax(jnp.where(probability > 0, worth, -jnp.inf), axis=-1)  # [B]
        chosen, running = token[rows, best], ~state.ended
        place = jnp.where(running, state.history.lengths, S)  # past the end: dropped
        history = dataclasses.replace(
            state.history,
            tokens=state.history.tokens.at[rows, place].set(chosen, mode="drop"),
            lengths=state.history.lengths + running,
        )
        return State(
            count=state.count + 1,
            history=history,
            ended=state.ended | (chosen[:, None] == end_tokens).any(1),
            last=x[rows * top_k + best],
            states=state.states.at[rows, place].set(unit[rows, best], mode="drop"),
            decoding=decoding,
            origin=jnp.repeat(rows * top_k + best, top_k),
        )

    return jax.lax.while_loop(unfinished, turn, state)


def _unit(x: jax.Array) -> jax.Array:
    """States [..., C] in float32, of length 1."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))

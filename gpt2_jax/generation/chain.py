"""From logits to a token: the chain of transforms that the settings switch on, and the pick.

The order is that of `transformers` (`GenerationMixin._get_logits_processor`, 4.57 to 5.23). Settings are one for all
rows, or each has a leading axis B: rows then obey their own, and a stage runs if it is on in any. Axes as in logits.py.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from gpt2_jax.generation import filters
from gpt2_jax.generation import logits as controls
from gpt2_jax.generation.draw import FEW, best_blocks, draw, most_probable, within, without
from gpt2_jax.generation.filters import BLOCK
from gpt2_jax.generation.lines import line_length
from gpt2_jax.generation.logits import LOWEST, History
from gpt2_jax.generation.sampling import Sampling


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rules:
    """What every way of writing obeys, all traced; each adds its own.

    Attributes:
      sampling: how a token is drawn.
      end_tokens: int32 [E], the ids that end a row; -1 is none.
      limit: int32 [], most new tokens a row.
    """

    sampling: Sampling
    end_tokens: jax.Array
    limit: jax.Array


Stage = tuple[jax.Array | bool, Callable[[jax.Array], jax.Array]]  # whether it is on, and the transform


def transform(
    logits: jax.Array,
    sampling: Sampling,
    history: History,
    *,
    end_tokens: jax.Array,
    limit: jax.Array | int,
    at_least: int = 1,
) -> jax.Array:
    """The whole chain: `process`, then `warp`."""
    logits = process(logits, sampling, history, end_tokens=end_tokens, limit=limit)
    return warp(logits, sampling, at_least=at_least)


def process(
    logits: jax.Array, sampling: Sampling, history: History, *, end_tokens: jax.Array, limit: jax.Array | int
) -> jax.Array:
    """The controls that every search obeys, sampling or not: penalties, bans and forced tokens.

    In a row whose every token they ban, only the first end token is left, so that the text ends; without an end token
    it is the model's own most probable one.

    Args:
      logits: float32 [B, V].
      history: the text so far; the logits are those of its next token.
      end_tokens: int32 [E] or [B, E], the ids that end a row; -1 is none.
      limit: most new tokens a row, int32 [] or [B].
    """
    s, first_free = sampling, jnp.where(jnp.asarray(sampling.forced_bos_token_id) >= 0, 1, 0)
    stages: list[Stage] = []
    if s.sequence_bias is not None:
        on = _any_id(s.sequence_bias[0], 2)
        stages.append((on, lambda x: controls.sequence_bias(x, *s.sequence_bias, history)))
    stages += [
        (s.repetition_penalty != 1, lambda x: controls.repetition_penalty(x, s.repetition_penalty, history)),
        (
            (s.presence_penalty != 0) | (s.frequency_penalty != 0),
            lambda x: controls.presence_and_frequency_penalty(x, s.presence_penalty, s.frequency_penalty, history),
        ),
    ]
    if s.line_length is not None:
        stages.append((s.line_length[1] > 0, lambda x: line_length(x, *s.line_length, history)))
    stages += [
        (s.no_repeat_ngram_size > 0, lambda x: controls.no_repeat_ngram(x, s.no_repeat_ngram_size, history)),
    ]
    if s.bad_words_ids is not None:
        on = _any_id(s.bad_words_ids, 2)
        stages.append((on, lambda x: controls.bad_words(x, s.bad_words_ids, history)))
    stages += [
        (s.min_new_tokens > 0, lambda x: controls.min_new_tokens(x, s.min_new_tokens, end_tokens, history)),
        (s.forced_bos_token_id >= 0, lambda x: controls.forced(x, s.forced_bos_token_id, history.new == 0)),
        (s.forced_eos_token_id >= 0, lambda x: controls.forced(x, s.forced_eos_token_id, history.new == limit - 1)),
    ]
    if s.exponential_decay_length_penalty is not None:
        start, factor = s.exponential_decay_length_penalty
        stages.append((factor != 1, lambda x: controls.exponential_decay(x, start, factor, end_tokens, history)))
    if s.suppress_tokens is not None:
        stages.append((_any_id(s.suppress_tokens, 1), lambda x: controls.ban(x, s.suppress_tokens)))
    if s.begin_suppress_tokens is not None:
        first, on = (history.new == first_free)[:, None], _any_id(s.begin_suppress_tokens, 1)
        stages.append((on, lambda x: controls.ban(x, jnp.where(first, s.begin_suppress_tokens, -1))))

    def leave_one(x: jax.Array) -> jax.Array:
        token = most_probable(logits)
        if end_tokens.size:
            first_end = end_tokens[..., 0]
            token = jnp.where(first_end >= 0, first_end, token)
        return controls.forced(x, token, x.max(-1) <= LOWEST)

    return _chain(logits, stages, finish=leave_one)


def warp(logits: jax.Array, sampling: Sampling, *, at_least: int = 1) -> jax.Array:
    """Temperature, then the filters; for draws alone.

    Args:
      logits: float32 [B, V].
      at_least: so many tokens are left, if not banned before; beam sampling needs one more than there are end tokens.
    """
    s = sampling
    # Below 1e-5 every other token's probability underflows anyway, and a smaller divisor could overflow.
    logits = controls.finite(logits / jnp.maximum(controls.of_rows(s.temperature), 1e-5))
    stages: list[Stage] = [
        (s.top_k > 0, lambda x: filters.keep_top_k(x, s.top_k, at_least)),
        (s.top_p < 1, lambda x: filters.keep_top_p(x, s.top_p, at_least)),
        (s.min_p > 0, lambda x: filters.keep_min_p(x, s.min_p, at_least)),
        (s.typical_p < 1, lambda x: filters.keep_typical(x, s.typical_p, at_least)),
        (s.epsilon_cutoff > 0, lambda x: filters.keep_epsilon(x, s.epsilon_cutoff, at_least)),
        (s.eta_cutoff > 0, lambda x: filters.keep_eta(x, s.eta_cutoff, at_least)),
    ]
    return _chain(logits, stages)


def _chain(logits: jax.Array, stages: Sequence[Stage], finish: Callable[[jax.Array], jax.Array] = lambda x: x):
    """The transforms that are on, in order, and then `finish`; what is off costs nothing."""

    def run(logits: jax.Array) -> jax.Array:
        for on, apply in stages:
            if_on = lambda x, on=on, apply=apply: _where(on, apply(x), x)
            logits = jax.lax.cond(jnp.any(on), if_on, lambda x: x, logits)
        return finish(logits)

    return jax.lax.cond(jnp.stack([jnp.any(on) for on, _ in stages]).any(), run, lambda x: x, logits)


def _where(on: jax.Array | bool, new: jax.Array, old: jax.Array) -> jax.Array:
    """`new` [B, V] where it is on, bool [B]; for one setting of all rows, all of it."""
    return new if jnp.ndim(on) == 0 else jnp.where(on[:, None], new, old)


def _any_id(ids: jax.Array, axes: int) -> jax.Array:
    """Whether a table of so many axes names an id, bool []; of a table a row, bool [B]."""
    return (jnp.asarray(ids) >= 0).any(tuple(range(-axes, 0)))


def pick(
    logits: jax.Array,
    sampling: Sampling,
    history: History,
    keys: jax.Array,
    *,
    end_tokens: jax.Array,
    limit: jax.Array | int,
) -> jax.Array:
    """The next token of each row: the most probable one at temperature 0, else a draw.

    Args:
      logits: float32 [B, V].
      sampling: the settings.
      history, end_tokens, limit: see `process`.
      keys: one key a row, [B], new for every token; a row's draw depends on its own key and logits alone.

    Returns:
      int32 [B].
    """
    logits = process(logits, sampling, history, end_tokens=end_tokens, limit=limit)
    drawn = jnp.asarray(sampling.temperature) > 0

    def draws() -> jax.Array:
        tokens = _draw(logits, sampling, jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys))
        return tokens if drawn.ndim == 0 else jnp.where(drawn, tokens, most_probable(logits))

    return jax.lax.cond(drawn.any(), draws, lambda: most_probable(logits))


def _draw(logits: jax.Array, sampling: Sampling, uniforms: jax.Array) -> jax.Array:
    """A draw from what `warp` leaves, [B]; a small top_k draws the same token from the few blocks that hold it."""
    every = lambda: draw(warp(logits, sampling), uniforms)
    B, V = logits.shape
    if V <= FEW * BLOCK:
        return every()
    k = jnp.where(jnp.asarray(sampling.temperature) > 0, sampling.top_k, 1)  # greedy rows need the best alone
    none = jnp.zeros((B, FEW), jnp.int32), jnp.zeros((), bool)
    few_enough = ((k > 0) & (k <= FEW)).all()
    chosen, enough = jax.lax.cond(few_enough, lambda: best_blocks(logits, k), lambda: none)
    few = lambda: without(draw(warp(within(logits, chosen), sampling), uniforms), chosen)
    return jax.lax.cond(enough, few, every)

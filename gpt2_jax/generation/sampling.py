"""From logits to a token: the settings, the chain of transforms that they switch on, and the pick.

The order is that of `transformers` (`GenerationMixin._get_logits_processor`, 4.57 to 5.23). Axes as in logits.py.
"""

import dataclasses
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.generation import filters
from gpt2_jax.generation import logits as controls
from gpt2_jax.generation.draw import FEW, best_blocks, draw, most_probable, within, without
from gpt2_jax.generation.filters import BLOCK
from gpt2_jax.generation.logits import LOWEST, History

LARGEST = 1e30  # of what divides or is added to logits: far from both ends of float32
# Each scalar: its one type (to jit, a temperature of 0 and one of 0.7 are otherwise two programs) and what is allowed.
SCALARS: dict[str, tuple[type, Callable[[Any], bool], str]] = {
    "temperature": (float, lambda x: 0 <= x <= LARGEST, "0 (greedy) or above"),
    "top_k": (int, lambda x: 0 <= x < 2**31, "a whole number, 0 (off) or above"),
    "top_p": (float, lambda x: 0 < x <= 1, "in (0, 1], where 1 is off"),
    "min_p": (float, lambda x: 0 <= x <= 1, "in [0, 1], where 0 is off"),
    "typical_p": (float, lambda x: 0 < x <= 1, "in (0, 1], where 1 is off"),
    "epsilon_cutoff": (float, lambda x: 0 <= x < 1, "in [0, 1), where 0 is off"),
    "eta_cutoff": (float, lambda x: 0 <= x < 1, "in [0, 1), where 0 is off"),
    "repetition_penalty": (float, lambda x: 1 / LARGEST <= x <= LARGEST, "above 0, where 1 is off"),
    "presence_penalty": (float, lambda x: abs(x) <= LARGEST, "a finite number, where 0 is off"),
    "frequency_penalty": (float, lambda x: abs(x) <= LARGEST, "a finite number, where 0 is off"),
    "no_repeat_ngram_size": (int, lambda x: 0 <= x < 2**31, "a whole number, 0 (off) or above"),
    "min_new_tokens": (int, lambda x: 0 <= x < 2**31, "a whole number, 0 (off) or above"),
    "forced_bos_token_id": (int, lambda x: -1 <= x < 2**31, "a token id, or -1 for none"),
    "forced_eos_token_id": (int, lambda x: -1 <= x < 2**31, "a token id, or -1 for none"),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, under the names of `transformers`; `Sampling.of` makes one from lists of ids.

    Changing a number compiles nothing anew, and neither does switching one on; lists of ids do only when one comes or
    goes, or outgrows the power of two to which its size is rounded up.

    Attributes:
      temperature: divides the logits; 0 always takes the most probable token (greedy).
      top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff: which tokens may be drawn; see filters.py.
      repetition_penalty: of tokens in the text, prompt included; 1 is off.
      presence_penalty, frequency_penalty: of tokens generated so far; 0 is off.
      no_repeat_ngram_size: no so many tokens come twice, prompt included; 0 is off.
      min_new_tokens: before an end token may come.
      forced_bos_token_id: the first new token; -1 is none.
      forced_eos_token_id: the last new token, when the limit is reached; -1 is none. It wins where both fall together.
      bad_words_ids: phrases that must not come, int32 [N, M], aligned on the right after -1.
      sequence_bias: such phrases, and what is added to the logits of their last tokens, float32 [N].
      suppress_tokens: int32 [any], which never come; -1 is none.
      begin_suppress_tokens: int32 [any], which do not come first (after a forced first token).

    Raises:
      InputError: a number out of range.
    """

    temperature: float | jax.Array = 1.0
    top_k: int | jax.Array = 0
    top_p: float | jax.Array = 1.0
    min_p: float | jax.Array = 0.0
    typical_p: float | jax.Array = 1.0
    epsilon_cutoff: float | jax.Array = 0.0
    eta_cutoff: float | jax.Array = 0.0
    repetition_penalty: float | jax.Array = 1.0
    presence_penalty: float | jax.Array = 0.0
    frequency_penalty: float | jax.Array = 0.0
    no_repeat_ngram_size: int | jax.Array = 0
    min_new_tokens: int | jax.Array = 0
    forced_bos_token_id: int | jax.Array = -1
    forced_eos_token_id: int | jax.Array = -1
    bad_words_ids: jax.Array | None = None
    sequence_bias: tuple[jax.Array, jax.Array] | None = None
    suppress_tokens: jax.Array | None = None
    begin_suppress_tokens: jax.Array | None = None

    def __post_init__(self):
        values = {name: getattr(self, name) for name in SCALARS}
        if not all(isinstance(value, numbers.Real) for value in values.values()):
            return  # inside a transform the values are tracers, checked when they were numbers
        for name, (kind, allowed, words) in SCALARS.items():
            value = values[name]
            if isinstance(value, bool) or not allowed(value) or value != kind(value):
                raise InputError(f"{name} is {value}; it must be {words}")
            object.__setattr__(self, name, kind(value))

    @classmethod
    def of(
        cls,
        vocab_size: int,
        *,
        bad_words_ids: Iterable[Sequence[int]] = (),
        sequence_bias: Mapping[Sequence[int], float] | None = None,
        suppress_tokens: Iterable[int] = (),
        begin_suppress_tokens: Iterable[int] = (),
        forced_bos_token_id: int | None = None,
        forced_eos_token_id: int | None = None,
        **scalars: float,
    ) -> "Sampling":
        """The settings from lists of token ids, checked against the vocabulary; empty ones are off.

        Unlike in `transformers`, an end token that is a bad word is banned as any other.

        Args:
          vocab_size: ids are below it.
          sequence_bias: {(id, ...): what is added to the logit of the last}; -inf is a ban.

        Raises:
          InputError: a number out of range, an id outside the vocabulary, an empty phrase, a bias that is no number,
            nothing left to say, or a forced token that is banned.
        """
        biases = {tuple(phrase): bias for phrase, bias in (sequence_bias or {}).items()}
        phrases = [tuple(phrase) for phrase in bad_words_ids]
        lists = {"suppress_tokens": tuple(suppress_tokens), "begin_suppress_tokens": tuple(begin_suppress_tokens)}
        forced = {
            name: token
            for name, token in (
                ("forced_bos_token_id", forced_bos_token_id),
                ("forced_eos_token_id", forced_eos_token_id),
            )
            if token is not None
        }
        for name, sequences in (
            ("bad_words_ids", phrases),
            ("sequence_bias", biases),
            *((name, [tokens]) for name, tokens in lists.items() if tokens),
            *((name, [(token,)]) for name, token in forced.items()),
        ):
            for sequence in sequences:
                _check_ids(name, sequence, vocab_size)
        for phrase, bias in biases.items():
            if not isinstance(bias, numbers.Real) or not (bias == -float("inf") or abs(bias) <= LARGEST):
                raise InputError(f"sequence_bias of {phrase} is {bias}; it must be a finite number, or -inf for a ban")
        _check_bans(phrases, lists, forced, vocab_size)
        return cls(
            **scalars,
            **forced,
            bad_words_ids=_phrases(phrases) if phrases else None,
            sequence_bias=(_phrases(list(biases)), _biases(list(biases.values()))) if biases else None,
            **{name: _phrases([(token,) for token in tokens])[:, 0] for name, tokens in lists.items() if tokens},
        )


def _check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    if not ids:
        raise InputError(f"{name} has a phrase without tokens; remove it")
    for token in ids:
        if isinstance(token, bool) or not isinstance(token, numbers.Integral) or not 0 <= token < vocab_size:
            raise InputError(
                f"{name} has {token!r}; it must be a token id from 0 to {vocab_size - 1}: encode text with the "
                "model's tokenizer"
            )


def _check_bans(
    phrases: Sequence[Sequence[int]], lists: Mapping[str, Sequence[int]], forced: Mapping[str, int], vocab_size: int
) -> None:
    """Raises where a forced token never comes, or nothing may."""
    never = {*lists["suppress_tokens"], *(phrase[0] for phrase in phrases if len(phrase) == 1)}
    for name, token in forced.items():
        if token in never:
            raise InputError(f"{name} is {token}, which suppress_tokens or bad_words_ids bans; remove one")
    for names, banned in (
        ("suppress_tokens and bad_words_ids ban", never),
        ("begin_suppress_tokens, suppress_tokens and bad_words_ids ban", never.union(lists["begin_suppress_tokens"])),
    ):
        if len(banned) == vocab_size:
            raise InputError(f"{names} all {vocab_size} tokens of the vocabulary; leave at least one")


def _rounded_up(length: int) -> int:
    """The power of two at or above it, at least 4: few shapes, few compilations."""
    return max(4, 1 << (length - 1).bit_length())


def _phrases(phrases: Sequence[Sequence[int]]) -> np.ndarray:
    """int32 [N, M], aligned on the right, -1 elsewhere; M is 1 for single tokens alone."""
    longest = max(map(len, phrases))
    ids = np.full((_rounded_up(len(phrases)), 1 if longest == 1 else _rounded_up(longest)), -1, np.int32)
    for row, phrase in zip(ids, phrases):
        row[-len(phrase) :] = phrase
    return ids


def _biases(biases: Sequence[float]) -> np.ndarray:
    padded = np.zeros(_rounded_up(len(biases)), np.float32)
    padded[: len(biases)] = np.maximum(biases, LOWEST)
    return padded


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
      end_tokens: int32 [E], the ids that end a row; -1 is none.
      limit: most new tokens a row, int32 [] or [B].
    """
    s, first_free = sampling, jnp.where(jnp.asarray(sampling.forced_bos_token_id) >= 0, 1, 0)
    stages: list[Stage] = []
    if s.sequence_bias is not None:
        stages.append((True, lambda x: controls.sequence_bias(x, *s.sequence_bias, history)))
    stages += [
        (s.repetition_penalty != 1, lambda x: controls.repetition_penalty(x, s.repetition_penalty, history)),
        (
            (s.presence_penalty != 0) | (s.frequency_penalty != 0),
            lambda x: controls.presence_and_frequency_penalty(x, s.presence_penalty, s.frequency_penalty, history),
        ),
        (s.no_repeat_ngram_size > 0, lambda x: controls.no_repeat_ngram(x, s.no_repeat_ngram_size, history)),
    ]
    if s.bad_words_ids is not None:
        stages.append((True, lambda x: controls.bad_words(x, s.bad_words_ids, history)))
    stages += [
        (s.min_new_tokens > 0, lambda x: controls.min_new_tokens(x, s.min_new_tokens, end_tokens, history)),
        (s.forced_bos_token_id >= 0, lambda x: controls.forced(x, s.forced_bos_token_id, history.new == 0)),
        (s.forced_eos_token_id >= 0, lambda x: controls.forced(x, s.forced_eos_token_id, history.new == limit - 1)),
    ]
    if s.suppress_tokens is not None:
        stages.append((True, lambda x: controls.ban(x, s.suppress_tokens)))
    if s.begin_suppress_tokens is not None:
        first = (history.new == first_free)[:, None]
        stages.append((True, lambda x: controls.ban(x, jnp.where(first, s.begin_suppress_tokens, -1))))

    def leave_one(x: jax.Array) -> jax.Array:
        token = most_probable(logits)
        if end_tokens.size:
            token = jnp.where(end_tokens[0] >= 0, end_tokens[0], token)
        return controls.forced(x, token[:, None], x.max(-1) <= LOWEST)

    return _chain(logits, stages, finish=leave_one)


def warp(logits: jax.Array, sampling: Sampling, *, at_least: int = 1) -> jax.Array:
    """Temperature, then the filters; for draws alone.

    Args:
      logits: float32 [B, V].
      at_least: so many tokens are left, if not banned before; beam sampling needs one more than there are end tokens.
    """
    s = sampling
    # Below 1e-5 every other token's probability underflows anyway, and a smaller divisor could overflow.
    logits = controls.finite(logits / jnp.maximum(s.temperature, 1e-5))
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
            logits = jax.lax.cond(jnp.asarray(on), apply, lambda x: x, logits)
        return finish(logits)

    return jax.lax.cond(jnp.stack([jnp.asarray(on) for on, _ in stages]).any(), run, lambda x: x, logits)


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
    return jax.lax.cond(
        jnp.asarray(sampling.temperature) > 0,
        lambda: _draw(logits, sampling, jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)),
        lambda: most_probable(logits),
    )


def _draw(logits: jax.Array, sampling: Sampling, uniforms: jax.Array) -> jax.Array:
    """A draw from what `warp` leaves, [B]; a small top_k draws the same token from the few blocks that hold it."""
    every = lambda: draw(warp(logits, sampling), uniforms)
    B, V = logits.shape
    if V <= FEW * BLOCK:
        return every()
    k = jnp.asarray(sampling.top_k)
    none = jnp.zeros((B, FEW), jnp.int32), jnp.zeros((), bool)
    chosen, enough = jax.lax.cond((k > 0) & (k <= FEW), lambda: best_blocks(logits, k), lambda: none)
    few = lambda: without(draw(warp(within(logits, chosen), sampling), uniforms), chosen)
    return jax.lax.cond(enough, few, every)

"""How the next token is chosen: the settings and what is allowed of them."""

import dataclasses
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.generation.logits import LOWEST

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
      exponential_decay_length_penalty: after so many new tokens the odds of end tokens grow by this factor a token.
      line_length: characters of a line, nats a character, and the `lines.line_table` that counts them.
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
    exponential_decay_length_penalty: tuple[jax.Array, jax.Array] | None = None
    line_length: tuple[jax.Array, jax.Array, jax.Array] | None = None
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
        exponential_decay_length_penalty: tuple[int, float] | None = None,
        line_length: tuple[float, float] | None = None,
        line_table: np.ndarray | None = None,
        **scalars: float,
    ) -> "Sampling":
        """The settings from lists of token ids, checked against the vocabulary; empty ones are off.

        Unlike in `transformers`, an end token that is a bad word is banned as any other.

        Args:
          vocab_size: ids are below it.
          sequence_bias: {(id, ...): what is added to the logit of the last}; -inf is a ban.
          exponential_decay_length_penalty: (new tokens, factor).
          line_length: (characters, nats a character), counted by `line_table` (lines.py).

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
            exponential_decay_length_penalty=_decay(exponential_decay_length_penalty),
            line_length=_line_length(line_length, line_table),
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


def _decay(given: tuple[int, float] | None) -> tuple[np.ndarray, np.ndarray] | None:
    if given is None:
        return None
    start, factor = _pair("exponential_decay_length_penalty", given)
    if not 0 <= start < 2**31 or start != int(start) or not 0 < factor <= LARGEST:
        raise InputError(
            f"exponential_decay_length_penalty is {given}; it must be a whole number of new tokens, 0 or more, and a "
            "factor above 0: above 1 texts become shorter, such as (20, 1.05), below 1 longer"
        )
    return np.int32(start), np.float32(factor)


def _line_length(
    given: tuple[float, float] | None, table: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    if given is None:
        return None
    target, strength = _pair("line_length", given)
    if not 1 <= target <= 2**20 or not 0 < strength <= LARGEST:
        raise InputError(
            f"line_length is {given}; it must be characters a line, at least 1, and a strength above 0 in nats a "
            "character, such as (40, 0.3); a large one makes the break certain"
        )
    return np.float32(target), np.float32(strength), table


def _pair(name: str, given: Any) -> tuple[float, float]:
    right = isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2
    if not right or not all(isinstance(x, numbers.Real) and not isinstance(x, bool) for x in given):
        raise InputError(f"{name} is {given!r}; it must be two numbers")
    return given[0], given[1]


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

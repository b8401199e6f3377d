"""Few-shot prompts that fit the context, and answers chosen by their log-probability (Brown et al., 2020)."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from absl import logging

from gpt2_jax.errors import InputError, check

if TYPE_CHECKING:  # which has `choose` as a method
    from gpt2_jax.language_model import LanguageModel

Normalise = Literal["sum", "token", "unconditional"]
NORMALISE = ("sum", "token", "unconditional")


@dataclasses.dataclass(frozen=True)
class FilledPrompt:
    """A prompt that fits a model's context with room for an answer.

    Attributes:
      text: what the model reads; no white space is at its end, for GPT-2's tokens begin with it.
      lead: the white space that an answer begins with.
      max_new_tokens: room that was kept for the answer.
      stop_strings: what ends an answer.
      dropped: how many of the oldest examples were left out.
    """

    text: str
    lead: str
    max_new_tokens: int
    stop_strings: tuple[str, ...]
    dropped: int

    @property
    def options(self) -> dict[str, Any]:
        """For `lm.generate(prompt.text, **prompt.options)`."""
        return {"max_new_tokens": self.max_new_tokens, "stop_strings": self.stop_strings}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShot:
    """A task told by examples.

        instruction
                                  <- separator
        Q: an input               <- input_prefix
        A: its output             <- output_prefix
                                  <- separator
        Q: the query
        A:

    Attributes:
      examples: (input, output), the oldest first.
      instruction: comes before them; "" is none.
      input_prefix, output_prefix: what begins the lines of inputs and outputs.
      separator: between instruction, examples and query.
      stop_strings: what ends an answer; None is the separator.

    Raises:
      InputError: an example that is no pair of texts, or nothing that ends an answer.
    """

    examples: Sequence[tuple[str, str]] = ()
    instruction: str = ""
    input_prefix: str = "Q: "
    output_prefix: str = "A: "
    separator: str = "\n\n"
    stop_strings: Sequence[str] | None = None

    def __post_init__(self):
        for number, example in enumerate(self.examples):
            pair = isinstance(example, tuple | list) and len(example) == 2 and all(isinstance(t, str) for t in example)
            check(pair, f"example {number}", example, "a pair of texts, (input, output)")
        if not all(self.ends):
            raise InputError(
                f"separator is {self.separator!r} and stop_strings {self.stop_strings!r}; give texts that end an answer"
            )

    @property
    def ends(self) -> tuple[str, ...]:
        """What ends an answer, at least one text."""
        return tuple((self.separator,) if self.stop_strings is None else self.stop_strings) or ("",)

    def build(
        self, lm: "LanguageModel", query: str, *, max_new_tokens: int | None = None, answers: Sequence[str] = ()
    ) -> FilledPrompt:
        """The prompt for a query, with the newest examples that the context has room for; a warning tells of others.

        Args:
          lm: the model.
          query: an input.
          max_new_tokens: room for the answer; by default that of the longest of `answers`, else 64 tokens.
          answers: what is to be chosen from.

        Raises:
          InputError: it does not fit, even without examples.
        """
        lead = self.output_prefix[len(self.output_prefix.rstrip()) :]
        if max_new_tokens is None:
            max_new_tokens = max((len(lm.tokenizer.encode(lead + answer)) for answer in answers), default=64)
        check(type(max_new_tokens) is int and max_new_tokens > 0, "max_new_tokens", max_new_tokens, "at least 1")
        room = lm.config.n_positions - max_new_tokens
        for dropped in range(len(self.examples) + 1):
            text = self._text(self.examples[dropped:], query)
            length = len(lm.tokenizer.encode(text))
            if length <= room:
                break
        else:
            raise InputError(
                f"the prompt has {length} tokens without any example, and the model's context of "
                f"{lm.config.n_positions} has room for {max(0, room)} beside an answer of {max_new_tokens}; shorten "
                "the instruction or the query, or allow a shorter answer (max_new_tokens)"
            )
        if dropped:
            logging.warning(
                "the oldest %d of %d examples are left out: the context has room for %d tokens beside the answer",
                dropped, len(self.examples), room,
            )  # fmt: skip
        return FilledPrompt(text, lead, max_new_tokens, self.ends, dropped)

    def _text(self, examples: Sequence[tuple[str, str]], query: str) -> str:
        shots = [f"{self.input_prefix}{i}\n{self.output_prefix}{o}" for i, o in (*examples, (query, ""))]
        return self.separator.join([*([self.instruction] if self.instruction else []), *shots]).rstrip()


@dataclasses.dataclass(frozen=True)
class Choice:
    """The most probable of given answers.

    Attributes:
      answer, index: which.
      scores: float64 [answers], by which it is; higher is better.
      logprobs: float64 [answers], log-probabilities of the whole answers after the prompt, in nats.
      lengths: int [answers], their tokens.
    """

    answer: str
    index: int
    scores: np.ndarray
    logprobs: np.ndarray
    lengths: np.ndarray

    def __str__(self) -> str:
        return self.answer


def choose(
    lm: "LanguageModel",
    prompts: Sequence[str | FilledPrompt],
    answers: Sequence[Sequence[str]],
    *,
    normalise: Normalise = "token",
    unconditional: str | None = None,
    batch_size: int = 8,
) -> list[Choice]:
    """The answer to each prompt that the model finds most probable (Brown et al., 2020, section 2.4).

    Args:
      lm: the model.
      prompts: texts, whose white space at the end is read with the answer, or `FewShot.build`'s.
      answers: of each prompt.
      normalise: "sum" takes the log-probability of the answer, "token" its mean over the answer's tokens,
        "unconditional" takes from it that of the same answer after a text that asks nothing.
      unconditional: that text; by default "Answer: ", and "" is end-of-text.
      batch_size: answers scored together.

    Raises:
      InputError: no answers, one that is empty or twice, what does not fit the context, or an option of no effect.
    """
    from gpt2_jax.evaluation.scoring import score  # which imports the language model

    check(normalise in NORMALISE, "normalise", normalise, f"one of {', '.join(map(repr, NORMALISE))}")
    if unconditional is not None and normalise != "unconditional":
        raise InputError(
            f"unconditional is {unconditional!r}, without effect where normalise is {normalise!r}; remove it"
        )
    if len(prompts) != len(answers):
        raise InputError(f"there are {len(prompts)} prompts and {len(answers)} lists of answers; give one a prompt")
    for those in answers:
        _check_answers(those)
    pairs = [_pair(lm, prompt, answer) for prompt, those in zip(prompts, answers) for answer in those]
    without = []
    if normalise == "unconditional":
        nothing = "Answer: " if unconditional is None else unconditional
        without = [(_pair(lm, nothing, "")[0], ids) for _, ids in pairs]
    scored = score(lm, pairs + without, batch_size=batch_size)
    totals = np.array([one.total for one in scored])
    lengths = np.array([len(ids) for _, ids in pairs])
    scores = totals[: len(pairs)].copy()
    if normalise == "token":
        scores /= lengths
    if normalise == "unconditional":
        scores -= totals[len(pairs) :]
    choices, start = [], 0
    for those in answers:
        at = slice(start, start + len(those))
        best = int(np.argmax(scores[at]))
        choices.append(Choice(those[best], best, scores[at], totals[at], lengths[at]))
        start += len(those)
    return choices


def _check_answers(answers: Sequence[str]) -> None:
    if isinstance(answers, str) or not len(answers):
        raise InputError(f"answers are {answers!r:.60}; they must be a list of at least one text")
    for answer in answers:
        if not isinstance(answer, str) or not answer.strip():
            raise InputError(f"the answer {answer!r:.60} is no text; give some, or leave it out")
    if twice := [answer for i, answer in enumerate(answers) if answer in answers[:i]]:
        raise InputError(f"the answer {twice[0]!r:.60} is there twice; remove one")


def _pair(lm: "LanguageModel", prompt: str | FilledPrompt, answer: str) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the answer, which begins with the prompt's white space."""
    if isinstance(prompt, FilledPrompt):
        text, lead = prompt.text, prompt.lead
    else:
        text = prompt.rstrip()
        lead = prompt[len(text) :]
    before, after = lm.tokenizer.encode(text), lm.tokenizer.encode(lead + answer) if answer else []
    before = before or [lm.tokenizer.end_of_text]
    if len(before) + len(after) > lm.config.n_positions + 1:
        raise InputError(
            f"the prompt has {len(before)} tokens and the answer {answer!r:.60} {len(after)}; the model's context is "
            f"{lm.config.n_positions}: shorten them, or build the prompt by FewShot, which leaves out examples"
        )
    return before, after

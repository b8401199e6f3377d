"""Verse that rhymes: which words sound alike at the end, a bias that leads lines to them, and how many lines do.

Rhymes are of spellings by default; `sound` may be any function of a word, such as one that asks a dictionary of
pronunciations.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gpt2_jax.errors import check
from gpt2_jax.language_model import LanguageModel

Sound = Callable[[str], str]
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_SPELLED = re.compile(r"(?:[aeiouy]+[^aeiouy]+e[sd]?|[aeiouy]+[^aeiouy]*)$")
LINE_TOKENS = 48
MOST = 16  # rhymes that a line is led to: few sizes of a bias, few compilations


def spelled(word: str) -> str:
    """The ending by which words rhyme for the eye: from the last vowel that is no silent e; "" if there is none."""
    found = _SPELLED.search(word.lower())
    return found[0] if found else ""


def last_word(line: str) -> str:
    """The last word of a line, or ""."""
    words = _WORD.findall(line)
    return words[-1] if words else ""


def rhyming(word: str, words: Iterable[str], sound: Sound = spelled) -> list[str]:
    """Those of `words` that rhyme with `word` and are another word, each once, in their order."""
    ending = sound(word)
    others = dict.fromkeys(other for other in words if other.lower() != word.lower())
    return [other for other in others if ending and sound(other) == ending]


def rhyme_bias(words: Sequence[str], bias: float) -> dict[str, float]:
    """A `sequence_bias` towards lines that end with one of the words: to the word, and to a line break after it."""
    return {phrase: bias for word in words for phrase in (f" {word}", f" {word}\n")}


def couplets(
    lm: LanguageModel,
    prompt: str = "",
    *,
    words: Sequence[str],
    pairs: int = 2,
    bias: float = 4.0,
    candidates: int = 4,
    sound: Sound = spelled,
    seed: int = 0,
    **options: Any,
) -> str:
    """Verse in pairs of lines, the second of which is led to end with a word that rhymes with the first.

    Of several second lines the most probable of those that rhyme is taken; if none does, the most probable.

    Args:
      lm: the model; its tokenizer spells words with the space before them, as GPT-2's.
      prompt: whole lines before the verse, or its first words.
      words: among which rhymes are looked for, such as the words of the text it was trained on, frequent ones first: a
        line is led to the first 16 that rhyme.
      bias: in nats, to rhyming words and to line breaks after them.
      candidates: second lines to choose from.
      sound: what of a word must be the same.
      seed: of the draws.
      **options: of `generate`, for each line; with `line_length` lines are of a length, too.

    Raises:
      InputError: numbers out of range, or an option that `generate` refuses.
    """
    check(pairs >= 1, "pairs", pairs, "at least 1")
    check(candidates >= 1, "candidates", candidates, "at least 1")
    options = {"max_new_tokens": LINE_TOKENS, "beyond_context": "slide", "stop_strings": ["\n"]} | options
    breaks = [i for i in range(len(lm.tokenizer)) if b"\n" in lm.tokenizer.spelling(i)]
    text, lines = prompt, []
    for number in range(2 * pairs):
        wanted = rhyming(last_word(lines[-1]), words, sound)[:MOST] if number % 2 else []
        drawn = lm.generate(
            [text],
            seed=seed + number,
            num_return_sequences=candidates if wanted else 1,
            sequence_bias=rhyme_bias(wanted, bias) if bias and wanted else None,
            begin_suppress_tokens=breaks,
            logprobs=0,
            **options,
        )
        begun = text.rpartition("\n")[2]
        fits = lambda line, wanted=wanted: last_word(line.completion) in wanted
        best = max(drawn, key=lambda line: (fits(line), line.logprobs.mean() if len(line.logprobs) else -1e9))
        lines.append(begun + best.completion)
        text += best.completion + "\n"
    return "\n".join(lines) + "\n"


def rhymed_share(text: str, sound: Sound = spelled) -> float:
    """The share of the pairs of lines, first and second, third and fourth, that end with a rhyme; 0 of no pair."""
    ends = [last_word(line) for line in text.split("\n") if line.strip()]
    pairs = list(zip(ends[::2], ends[1::2]))
    return sum(bool(rhyming(first, [second], sound)) for first, second in pairs) / max(1, len(pairs))


def line_lengths(text: str) -> list[int]:
    """Characters of each line that is not empty."""
    return [len(line) for line in text.split("\n") if line.strip()]

"""How varied texts are: token sequences in, numbers out.

A text is a sequence of hashable tokens: `words` of it, or a model's ids. All but Zipf's coefficient are in [0, 1].
"""

import collections
import itertools
import math
import re
from collections.abc import Hashable, Sequence

import numpy as np

from gpt2_jax.errors import InputError, check

Text = Sequence[Hashable]
RANKS = 5_000  # of the most frequent tokens, on which Zipf's law is fitted: Holtzman et al. do so
UNMATCHED = 0.1  # counts for no n-gram in common (method 1 of Chen and Cherry, 2014), as Texygen does

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """Words and single marks of punctuation, case kept."""
    return _WORD.findall(text)


def distinct(texts: Sequence[Text], n: int) -> float:
    """Distinct-n (Li et al., 2016): different n-grams among all of `texts` over their number; 1 is no repetition.

    It falls as texts become more or longer: compare like with like.

    Raises:
      InputError: no text has n tokens.
    """
    counts = sum((ngrams(text, n) for text in texts), collections.Counter())
    return len(counts) / _some(counts.total(), texts, n)


def repetition(texts: Sequence[Text], n: int) -> float:
    """seq-rep-n (Welleck et al., 2020): the share of each text's n-grams that it had before, mean over the texts.

    Texts of fewer than n tokens have none and are left out.

    Raises:
      InputError: no text has n tokens.
    """
    shares = [1 - len(counts) / counts.total() for text in texts if (counts := ngrams(text, n))]
    _some(len(shares), texts, n)
    return float(np.mean(shares))


def self_bleu(texts: Sequence[Text], n: int = 4) -> float:
    """Self-BLEU (Zhu et al., 2018): the mean BLEU-n of each text with all others as its references; high is alike.

    BLEU (Papineni et al., 2002) of one sentence, smoothed as in Texygen; 0 for one without a token in common. Time
    grows with the number of tokens, not of pairs: of each n-gram it keeps the two texts that have it most often.

    Raises:
      InputError: fewer than two texts, one without tokens, or an n below 1.
    """
    check(len(texts) >= 2, "the number of texts", len(texts), "at least 2: self-BLEU compares each with the others")
    if empty := [i for i, text in enumerate(texts) if not len(text)]:
        raise InputError(f"text {empty[0]} has no tokens; self-BLEU needs some of each: leave it out")
    matched, precisions = zip(*(_matches(texts, order) for order in range(1, _order(n) + 1)))
    scores = _brevity_penalties(texts) * np.exp(np.mean(np.log(precisions), axis=0))
    return float(np.mean(np.where(matched[0] > 0, scores, 0)))


def zipf_coefficient(texts: Sequence[Text]) -> float:
    """The exponent s of Zipf's law, frequency ~ rank ** -s; natural text is near 1 (Holtzman et al., 2020).

    Fitted by least squares on logarithms, on the 5,000 most frequent of all texts' tokens.

    Raises:
      InputError: fewer than two different tokens.
    """
    counts = collections.Counter(token for text in texts for token in text)
    check(len(counts) >= 2, "the number of different tokens", len(counts), "at least 2 to fit a line")
    frequencies = np.array([count for _, count in counts.most_common(RANKS)], np.float64)
    slope, _ = np.polyfit(np.log(np.arange(1, len(frequencies) + 1)), np.log(frequencies), 1)
    return float(-slope)


def ngrams(text: Text, n: int) -> collections.Counter[tuple[Hashable, ...]]:
    """How often each n-gram is in `text`."""
    tokens = list(text)
    return collections.Counter(zip(*(itertools.islice(tokens, i, None) for i in range(_order(n)))))


def _matches(texts: Sequence[Text], n: int) -> tuple[np.ndarray, np.ndarray]:
    """[texts], twice: how many of each text's n-grams some other text has, as often as there at most; their share."""
    counts = [ngrams(text, n) for text in texts]
    most: dict[
        tuple[Hashable, ...], tuple[int, int, int]
    ] = {}  # n-gram -> (which text has it most often, how often, ...
    for i, of_text in enumerate(counts):  # ... how often the next one has it)
        for ngram, count in of_text.items():
            owner, first, second = most.get(ngram, (-1, 0, 0))
            most[ngram] = (i, count, first) if count > first else (owner, first, max(second, count))
    matched = [
        sum(min(count, most[ngram][2 if most[ngram][0] == i else 1]) for ngram, count in of_text.items())
        for i, of_text in enumerate(counts)
    ]
    shares = [(m or UNMATCHED) / (of_text.total() or 1) for m, of_text in zip(matched, counts)]
    return np.array(matched), np.array(shares)


def _brevity_penalties(texts: Sequence[Text]) -> np.ndarray:
    """[texts]: below 1 where the other text of the nearest length (of two, the shorter) is longer."""
    lengths = [len(text) for text in texts]
    counts = collections.Counter(lengths)

    def penalty(length: int) -> float:
        others = [other for other, times in counts.items() if times > 1 or other != length]
        nearest = min(others, key=lambda other: (abs(other - length), other))
        return min(1.0, math.exp(1 - nearest / length))

    by_length = {length: penalty(length) for length in counts}
    return np.array([by_length[length] for length in lengths])


def _order(n: int) -> int:
    check(type(n) is int and n >= 1, "n", n, "a whole number, at least 1")
    return n


def _some(number: int, texts: Sequence[Text], n: int) -> int:
    if not number:
        raise InputError(f"none of {len(texts)} texts has {n} tokens, so there are no {n}-grams; give longer texts")
    return number

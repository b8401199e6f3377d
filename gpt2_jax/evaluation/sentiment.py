"""How positive or negative texts are, by VADER's lexicon and rules (Hutto and Gilbert, 2014), made for sentences."""

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from gpt2_jax.data.options import DataConfig
from gpt2_jax.data.sources import open_source
from gpt2_jax.errors import InputError, check

CLEAR = 0.05  # VADER's own bound: scores from it on are positive, and from its negative on negative
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'\u201d\u2019]*\s+(?=[\"'\u201c\u2018A-Z])")


def sentiments(texts: Sequence[str]) -> list[float]:
    """VADER's compound score of each text, from -1 (negative) to 1 (positive).

    Raises:
      InputError: it is not installed.
    """
    analyzer = _vader()
    return [analyzer.polarity_scores(text)["compound"] for text in texts]


def by_sentiment(texts: Sequence[str]) -> list[str]:
    """A judge (judges.py) of "positive", "negative" and "neutral"."""
    kind = lambda value: "positive" if value >= CLEAR else "negative" if value <= -CLEAR else "neutral"
    return [kind(value) if text.strip() else "" for text, value in zip(texts, sentiments(texts))]


def sentences(text: str) -> list[str]:
    """The sentences of a text, by their marks of punctuation and the capitals after them; lines are joined."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    return [sentence for paragraph in paragraphs if paragraph for sentence in _SENTENCE_END.split(paragraph)]


def label(paths: str, folder: Path, least: float) -> dict[Path, int]:
    """Writes positive.jsonl and negative.jsonl, a line each sentence: its text, its label, its score.

    Args:
      paths: of files, as `data.paths`.
      folder: made if absent.
      least: how far from 0 a score must be, in (0, 1].

    Returns:
      How many sentences are in each file.

    Raises:
      InputError: files that cannot be read, a folder that cannot be written, or a bound out of range.
    """
    check(0 < least <= 1, "least", least, "above 0, and at most 1")
    documents = open_source(DataConfig(source="files", paths=paths)).documents()
    texts = [sentence for document in documents for sentence in sentences(document.text)]
    scored = list(zip(texts, sentiments(texts)))
    found = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, sign in (("positive", 1), ("negative", -1)):
            lines = [{"text": text, "label": name, "score": value} for text, value in scored if sign * value >= least]
            file = folder / f"{name}.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            found[file] = len(lines)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); give another") from None
    return found


@functools.cache
def _vader():
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise InputError("judging sentiment needs vaderSentiment; pip install 'gpt2_jax[sentiment]'") from None
    return SentimentIntensityAnalyzer()

import json
import sys

import pytest

from gpt2_jax import InputError
from gpt2_jax.evaluation import sentiment


def test_sentences():
    text = 'One is here. "Two!" He said\nthree?\n\nFour. five, e.g. Six'
    assert sentiment.sentences(text) == ["One is here.", '"Two!', "He said three?", "Four. five, e.g.", "Six"]


@pytest.fixture
def scored(monkeypatch):
    """A stand-in for VADER: the number of + less that of -, in tenths."""

    class Analyzer:
        def polarity_scores(self, text):
            return {"compound": (text.count("+") - text.count("-")) / 10}

    monkeypatch.setattr(sentiment, "_vader", Analyzer)


def test_kinds_and_labelled_files(scored, tmp_path):
    assert sentiment.by_sentiment(["+", "-", "+-", " "]) == ["positive", "negative", "neutral", ""]
    (tmp_path / "a.txt").write_text("Good +++++. So so +. Bad ------. Nothing.")
    found = sentiment.label(str(tmp_path / "a.txt"), tmp_path / "out", 0.5)
    assert [(file.name, count) for file, count in found.items()] == [("positive.jsonl", 1), ("negative.jsonl", 1)]
    lines = [json.loads(file.read_text()) for file in found]
    assert lines == [
        {"text": "Good +++++.", "label": "positive", "score": 0.5},
        {"text": "Bad ------.", "label": "negative", "score": -0.6},
    ]
    with pytest.raises(InputError, match="least is 0; it must be above 0, and at most 1"):
        sentiment.label("x", tmp_path, 0)
    with pytest.raises(InputError, match=r"a.txt cannot be written \(.*\); give another"):
        sentiment.label(str(tmp_path / "a.txt"), tmp_path / "a.txt", 0.5)


def test_vader_itself():
    pytest.importorskip("vaderSentiment", reason="the extra 'sentiment' is not installed")
    kinds = sentiment.by_sentiment(["What a lovely, happy day!", "A sad and terrible death.", "The table is brown."])
    assert kinds == ["positive", "negative", "neutral"]


def test_what_is_missing_is_named(monkeypatch):
    sentiment._vader.cache_clear()
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(InputError, match=r"judging sentiment needs vaderSentiment; pip install 'gpt2_jax\[sent"):
        sentiment.sentiments(["x"])

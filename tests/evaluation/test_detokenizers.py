import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax.evaluation.detokenizers import PATTERNS, Detokenizer

REAL = Path(__file__).parents[2] / "../shared/data/eval/wikitext2_test.txt"
DASH = "\N{EN DASH}"
WRITTEN = [
    (
        "wikitext",
        " = = The dog = = \n \n A well @-@ fed dog 's 1 @,@ 000.5 . \n",
        "== The dog ==\n\nA well-fed dog's 1,000.5.\n",
    ),
    (
        "wikitext",
        f' He said : " I don \'t know " ( in 1990 {DASH} 91 ) ; 3 @.@ 5 % \n',
        f'He said: "I don\'t know" (in 1990{DASH}91); 3.5%\n',
    ),
    ("wikitext", " the dogs ' owners and Col. Smith of the U.S. \n", "the dogs' owners and Col. Smith of the U.S.\n"),
    ("ptb", "mr. <unk> 's u.s. company did n't sell $ N million", "mr. <unk>'s u.s. company didn't sell $N million"),
    ("ptb", "they wo n't say we 've lost", "they won't say we've lost"),
    ("1bw", '" I don \'t know , " said 1,000 al-Qaida men .', '"I don\'t know," said 1,000 al-Qaida men.'),
    (
        "cbt",
        "`` Oh , Mr. Fox ! '' said Alice -LRB- who was n't there -RRB- .",
        '"Oh, Mr. Fox!" said Alice (who wasn\'t there).',
    ),
]


@pytest.mark.parametrize(("corpus", "text", "written"), WRITTEN)
def test_text_as_people_write_it(corpus, text, written):
    detokenizer = Detokenizer.of(corpus, text)
    assert detokenizer.detokenize(text) == written
    assert detokenizer.tokenize(written) == text


MARKS = [
    *string.punctuation, "@-@", "@,@", "@.@", "``", "''", "-LRB-", "-RRB-", "n't", "'s", "'t", "...", "--", "<unk>",
    "U.S.", "Col.", "1", "1990", DASH, "\u201c", "dogs", "A", "é", "", "s", "\xa0", "\t", "東京",
]  # fmt: skip
words = st.one_of(st.sampled_from(MARKS), st.text(max_size=4).filter(lambda word: "\n" not in word and " " not in word))
texts = st.lists(st.lists(words, max_size=8).map(" ".join), max_size=4).map("\n".join)
padded = st.lists(st.lists(words, max_size=6).map(lambda line: f" {' '.join(line)} " if line else " "), max_size=3)


@pytest.mark.parametrize("corpus", PATTERNS)
@settings(max_examples=80, deadline=None)
@given(text=st.one_of(texts, padded.map(lambda lines: "".join(f"{line}\n" for line in lines))))
def test_any_text_comes_back(corpus, text):
    detokenizer = Detokenizer.of(corpus, text)
    assert detokenizer.tokenize(detokenizer.detokenize(text)) == text


@pytest.mark.skipif(not REAL.exists(), reason=f"needs {REAL}, the test set of WikiText-2")
def test_wikitext_comes_back_and_is_written_as_people_do():
    text = REAL.read_text(encoding="utf-8")[:300_000].rpartition("\n")[0] + "\n"
    detokenizer = Detokenizer.of("wikitext", text)
    written = detokenizer.detokenize(text)
    assert detokenizer.tokenize(written) == text
    assert len(written.split()) < 0.87 * len(text.split())
    for mark in ("@-@", "@,@", "@.@", "'s", ";", ","):
        assert written.count(f" {mark} ") <= 0.02 * text.count(f" {mark} "), mark

import pytest

from gpt2_jax import InputError
from gpt2_jax.evaluation import texts
from gpt2_jax.evaluation.perplexity import Text

FILE = " \n = First = \n \n One dog , two . \n = = Part = = \n Three . \n \n = Second = \n Four 's . \n \n"
ROWS = [
    "", " = First = \n", "", " One dog , two . \n", " = = Part = = \n", " Three . \n", "", " = Second = \n",
    " Four 's . \n", "",
]  # fmt: skip


def examples(rows, column="text"):
    return [(f"row {i}", {column: row}) for i, row in enumerate(rows)]


def test_a_file_of_wikitext_is_the_rows_of_the_hub():
    assert [example["text"] for example in texts.wikitext_lines(FILE)] == ROWS


def test_wikitext_article_by_article():
    first, second = texts.wikitext_articles(examples(ROWS), None, True)
    assert first.original + second.original == FILE
    assert first.encoded == "\n= First =\n\nOne dog, two.\n== Part ==\nThree.\n\n" and "Four's." in second.encoded
    assert texts.wikitext_articles(examples(ROWS), 1, False) == [Text(first.original)]
    assert len(texts.wikitext_articles(examples(ROWS), 2, False)) == 2


def test_wikitext_as_hugging_face_joins_it():
    (text,) = texts.wikitext_whole(examples(ROWS), None, False)
    assert text.encoded == "\n\n".join(ROWS) and text.original == FILE
    (written,) = texts.wikitext_whole(examples(ROWS), None, True)
    assert "One dog, two." in written.encoded and written.original == FILE
    (part,) = texts.wikitext_whole(examples(ROWS), 1, False)
    assert "Second" not in part.encoded and "Three" in part.encoded


def test_sentences():
    rows = [" he did n't go \n", " mr. <unk> 's \n", " third \n"]
    (text,) = texts.penn_treebank(examples(rows, "sentence"), 2, True)
    assert text == Text("he didn't go\nmr. <unk>'s", "he did n't go\nmr. <unk> 's")
    sentences = texts.one_billion_words(examples(["A , b .", "C ' s d ."]), None, True)
    assert sentences[0] == Text("A, b.", "A , b .") and len(sentences) == 2
    assert texts.one_billion_words(examples(["A , b ."]), None, False) == [Text("A , b .")]
    assert list(texts.lines("sentence")(" a b \n\nc")) == [{"sentence": "a b"}, {"sentence": "c"}]


def test_the_end_of_enwik8(monkeypatch):
    monkeypatch.setattr(texts, "WHOLE", 20)
    monkeypatch.setattr(texts, "TEST", 6)
    text = "x" * 13 + "é" + "abcde"
    assert texts.last_bytes(examples([text]), None, False) == [Text("abcde")]
    assert texts.last_bytes(examples([text + "f"]), None, False) == [Text(text + "f")]
    assert texts.last_bytes(examples(["ab" * 800]), 1, False) == [Text("ab" * 500)]
    assert list(texts.whole("a\nb")) == [{"text": "a\nb"}]


@pytest.mark.parametrize("read", [texts.wikitext_articles, texts.wikitext_whole, texts.one_billion_words])
def test_no_words_are_refused(read):
    with pytest.raises(InputError, match="the text is empty: there is no example with words in it; check the file"):
        read([], None, True)

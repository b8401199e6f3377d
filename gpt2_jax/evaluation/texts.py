"""The texts whose perplexity the GPT-2 paper gives: what the model reads, and what words are counted in."""

import itertools
import re
from collections.abc import Iterator
from typing import Any

from gpt2_jax.errors import InputError
from gpt2_jax.evaluation.detokenizers import Detokenizer
from gpt2_jax.evaluation.examples import Examples, text_of
from gpt2_jax.evaluation.perplexity import Text

WHOLE, TEST = 100_000_000, 5_000_000  # bytes of enwik8 and text8, and those at their end that are the test set
_TITLE = re.compile(r" = [^=](?:.*[^=])? = \n?")


def wikitext_lines(text: str) -> Iterator[dict[str, str]]:
    """The lines of a file of WikiText as the hub's rows: with their line ends, an empty one without anything."""
    for line in text.splitlines(keepends=True):
        yield {"text": line if line.strip() else ""}


def lines(column: str):
    """The lines of a file that are not empty, as examples."""

    def of_text(text: str) -> Iterator[dict[str, str]]:
        return ({column: line.strip()} for line in text.split("\n") if line.strip())

    return of_text


def whole(text: str) -> Iterator[dict[str, str]]:
    """A file as one example."""
    yield {"text": text}


def wikitext_articles(examples: Examples, limit: int | None, detokenize: bool) -> list[Text]:
    """WikiText, a document an article; in the text an empty row is an empty line again."""
    articles = _articles(examples, limit)
    pages = ["".join(row or " \n" for row in rows) for rows in articles]
    return _detokenized("wikitext", pages, detokenize)


def wikitext_whole(examples: Examples, limit: int | None, detokenize: bool) -> list[Text]:
    """WikiText as one document: the rows with empty lines between them, as Hugging Face's guide joins them."""
    articles = _articles(examples, limit)
    rows = [row for article in articles for row in article]
    if not detokenize:
        return [Text("\n\n".join(rows), "".join(row or " \n" for row in rows))]
    return _detokenized("wikitext", ["".join(row or " \n" for row in rows)], True)


def penn_treebank(examples: Examples, limit: int | None, detokenize: bool) -> list[Text]:
    """The Penn Treebank of Mikolov, whose sentences follow each other: one document, a sentence a line."""
    sentences = [text_of(where, example, "sentence").strip() for where, example in _first(examples, limit)]
    return _detokenized("ptb", ["\n".join(sentences)], detokenize)


def one_billion_words(examples: Examples, limit: int | None, detokenize: bool) -> list[Text]:
    """The 1 Billion Word benchmark, whose sentences are shuffled: a document each."""
    sentences = [text_of(where, example, "text").strip() for where, example in _first(examples, limit)]
    return _detokenized("1bw", sentences, detokenize)


def each(examples: Examples, limit: int | None, detokenize: bool) -> list[Text]:
    """Each example as it is, a document."""
    return [Text(text_of(where, example, "text")) for where, example in itertools.islice(examples, limit)]


def last_bytes(examples: Examples, limit: int | None, detokenize: bool) -> list[Text]:
    """enwik8 or text8: of the whole file its last 5,000,000 bytes, of any other text all of it; one document."""
    data = "".join(text_of(where, example, "text") for where, example in examples).encode()
    if len(data) == WHOLE:
        data = data[-TEST:].lstrip(bytes(range(0x80, 0xC0)))  # the rest of a character that was cut
    if limit is not None:
        data = data[: limit * 1000]
    return [Text(data.decode(errors="ignore"))]


def _articles(examples: Examples, limit: int | None) -> list[list[str]]:
    articles: list[list[str]] = [[]]
    for where, example in examples:
        row = text_of(where, example, "text")
        if _TITLE.fullmatch(row) and any(articles[-1]):
            if len(articles) == limit:
                break
            articles.append([])
        articles[-1].append(row)
    return articles


def _first(examples: Examples, limit: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, example in enumerate(examples):
        if number == limit:
            return
        yield example


def _detokenized(corpus: str, texts: list[str], detokenize: bool) -> list[Text]:
    if not any(texts):
        raise InputError("the text is empty: there is no example with words in it; check the file")
    if not detokenize:
        return [Text(text) for text in texts]
    if len(texts) == 1:
        return [Text(Detokenizer.of(corpus, texts[0]).detokenize(texts[0]), texts[0])]
    of_all = Detokenizer.of(corpus, "\n".join(texts) if corpus == "1bw" else "".join(texts))
    return [Text(of_all.detokenize(text), text) for text in texts]

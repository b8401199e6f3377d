"""The rows of documents from those of a dataset: lines joined to books and articles, prompts before stories."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gpt2_jax.data.options import DataConfig

Row = tuple[int, dict[str, Any]]  # the row to go on from, and the row's fields, strings as bytes
_TITLE = re.compile(rb" = [^=](?:.*[^=])? = \n?")


class Assembler(NamedTuple):
    """`assemble(rows, config)` gives the rows of documents; `needs` is a column besides text and prompt, or ""."""

    assemble: Callable[[Iterator[Row], DataConfig], Iterator[Row]]
    needs: str = ""


def _books(rows: Iterator[Row], config: DataConfig) -> Iterator[Row]:
    """Lines of verse, one a row, to one document a book: the dataset marks where a book begins, and no poem."""
    key = "gutenberg_id"
    return _grouped(rows, config.text_key, lambda record, before: record[key] != before[key], b"\n")


def _articles(rows: Iterator[Row], config: DataConfig) -> Iterator[Row]:
    """Lines of WikiText to one document an article, which begins with " = Title = "."""
    key = config.text_key
    return _grouped(rows, key, lambda record, before: bool(_TITLE.fullmatch(record[key])), b"")


def _grouped(rows: Iterator[Row], key: str, begins: Callable[[dict, dict], bool], joint: bytes) -> Iterator[Row]:
    lines, reached, before = [], 0, None
    for row, record in rows:
        if before is not None and begins(record, before):
            yield reached, before | {key: joint.join(lines)}
            lines = []
        lines.append(record[key])
        reached, before = row, record
    if before is not None:
        yield reached, before | {key: joint.join(lines)}


def _prompted(rows: Iterator[Row], config: DataConfig) -> Iterator[Row]:
    """A prompt and its story, with an empty line between them."""
    key = config.prompt_key
    for row, record in rows:
        yield row, record | {key: record[key].strip() + b"\n\n"}


ASSEMBLERS = {
    "books": Assembler(_books, "gutenberg_id"),
    "articles": Assembler(_articles),
    "prompted": Assembler(_prompted),
}

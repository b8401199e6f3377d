"""A source made of strings."""

import dataclasses
import itertools

from gpt2_jax.config import DataConfig
from gpt2_jax.data.documents import Document
from gpt2_jax.data.sources import Source


@dataclasses.dataclass(frozen=True)
class Texts:
    """A part: each text is a document, after the same prompt."""

    texts: tuple[str, ...]
    name: str = "texts"
    prompt: str = ""

    def documents(self, start=0, counts=None):
        for i, text in enumerate(self.texts[start:], start):
            if counts is not None:
                counts["kept"] += 1
            yield i + 1, Document(text, str(i), self.prompt)


def source_of(texts, parts=1, name="files", prompt="") -> Source:
    """The texts cut into parts."""
    cuts = [round(len(texts) * i / parts) for i in range(parts + 1)]
    of = [Texts(tuple(texts[a:b]), prompt=prompt) for a, b in itertools.pairwise(cuts)]
    return Source(name, DataConfig(), tuple(of))

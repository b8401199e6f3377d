"""What kind of text a text is, by others than the model that wrote it: n-grams of real texts, or models of domains.

A judge takes texts and names the kind of each; a text in which there is nothing to judge is of the kind "".
"""

import collections
import functools
import math
from collections.abc import Callable, Mapping, Sequence

from gpt2_jax.errors import InputError
from gpt2_jax.evaluation.scoring import score
from gpt2_jax.language_model import LanguageModel

Judge = Callable[[Sequence[str]], list[str]]


class NaiveBayes:
    """Multinomial naive Bayes over the n-grams of characters of real texts, all kinds equally probable beforehand.

    Args:
      texts: of each kind.
      n: characters of an n-gram.

    Raises:
      InputError: fewer than two kinds, or one without an n-gram.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]], n: int = 4):
        if len(texts) < 2:
            raise InputError(f"there are texts of {len(texts)} kinds; give some of two or more to tell apart")
        self._n = n
        counts = {
            kind: collections.Counter(gram for text in of for gram in self._grams(text)) for kind, of in texts.items()
        }
        if empty := [kind for kind, of in counts.items() if not of]:
            raise InputError(f"the texts of {empty[0]!r} have no {n} characters in a row; give longer ones")
        entries = len(set().union(*counts.values())) + 1  # one more for all that was never seen
        self._log_p = {
            kind: collections.defaultdict(
                functools.partial(math.log, 1 / (of.total() + entries)),
                {gram: math.log((count + 1) / (of.total() + entries)) for gram, count in of.items()},
            )
            for kind, of in counts.items()
        }

    def __call__(self, texts: Sequence[str]) -> list[str]:
        return [self._kind(self._grams(text)) for text in texts]

    def _kind(self, grams: Sequence[str]) -> str:
        if not grams:
            return ""
        likelihood = {kind: sum(map(log_p.__getitem__, grams)) for kind, log_p in self._log_p.items()}
        return max(likelihood, key=likelihood.__getitem__)

    def _grams(self, text: str) -> list[str]:
        return [text[i : i + self._n] for i in range(len(text) - self._n + 1)]


def by_domain_models(models: Mapping[str, LanguageModel], batch_size: int = 8) -> Judge:
    """A judge by the model that finds a text most probable, each trained on one kind; their tokenizers may differ.

    As all models read the same bytes, the most probable is that of the lowest bits per byte. Of a text longer than a
    model's context the beginning counts, which fits all of them.

    Raises:
      InputError: fewer than two models.
    """
    if len(models) < 2:
        raise InputError(f"there are {len(models)} domain models; give two or more, of a kind each")

    def judge(texts: Sequence[str]) -> list[str]:
        texts = [_that_fits(text, models.values()) for text in texts]
        some = [text for text in texts if text]
        nats = {}
        for kind, lm in models.items():
            scored = score(lm, [([], ids) for ids in lm.tokenizer.encode_batch(some)], batch_size=batch_size)
            nats[kind] = dict(zip(some, (-of_text.total for of_text in scored)))
        return [min(nats, key=lambda kind, text=text: nats[kind][text]) if text else "" for text in texts]

    return judge


def _that_fits(text: str, models: Sequence[LanguageModel]) -> str:
    for lm in models:
        while len(ids := lm.tokenizer.encode(text)) > lm.config.n_positions:
            text = text[: len(text) * lm.config.n_positions // len(ids)]
    return text

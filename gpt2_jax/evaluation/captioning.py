"""Captions of held-out images: whether the model writes them word for word, and how probable it finds them."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gpt2_jax.data.captions import Captioned, open_captions
from gpt2_jax.errors import InputError
from gpt2_jax.evaluation.outcome import Figure, Outcome, Settings, perplexity_of, share
from gpt2_jax.image_language_model import ImageLanguageModel
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.pixels import Image

Example = tuple[str, dict[str, Any]]  # (where it is; its "image", "captions")


class HeldOut:
    """The images that a model was not trained on, which it knows itself, or those of a folder."""

    def examples(self, data: str | None = None, limit: int | None = None) -> "Chosen":
        """What is to be taken: with a folder of images and captions, all of it."""
        return Chosen(data, limit)


class Chosen:
    """Images that a model is still to open, for it says how they are read.

    Args:
      data: a folder as of `image.source=folder`; None: those held out when the model was trained.
      limit: how many at most.
    """

    def __init__(self, data: str | None, limit: int | None):
        self._data, self._limit = data, limit

    def __iter__(self) -> Iterator[Example]:
        raise InputError("images are opened by the model that reads them; give a run with images (--model)")

    def of(self, lm: LanguageModel) -> tuple[Captioned, list[int]]:
        """The images and the numbers of those that are taken.

        Raises:
          InputError: the model reads no images, or they cannot be read.
        """
        if not isinstance(lm, ImageLanguageModel):
            raise InputError("the model reads no images; give a run that was trained with image.source")
        if self._data is None:
            images = open_captions(lm.image)
            return images, images.split()[1][: self._limit]
        images = open_captions(lm.image.from_folder(self._data))
        return images, list(range(len(images)))[: self._limit]


def exact_match(lm: LanguageModel, examples: Chosen, settings: Settings) -> Outcome:
    """Greedy captions, and whether each is one that its image has; and the perplexity of a token of those that it has."""
    images, numbers = examples.of(lm)
    hits, nats, tokens = [], [], 0
    for batch in in_batches(numbers, settings.batch_size):
        shown = [images.image(number) for number in batch]
        found = lm.caption(shown, temperature=0)
        hits += [caption.completion.strip() in images.captions[number] for caption, number in zip(found, batch)]
        pairs = [(image, text) for image, number in zip(shown, batch) for text in images.captions[number]]
        for logprobs in lm.caption_logprobs(*zip(*pairs), batch_size=settings.batch_size):
            nats.append(-float(logprobs.sum(dtype=np.float64)))
            tokens += len(logprobs)
        if settings.progress is not None:
            settings.progress(len(hits), len(numbers), "images")
    figures = {"exact_match": share(hits), "token_perplexity": Figure(np.exp(sum(nats) / tokens), float("nan"))}
    return Outcome(figures, {"images": len(hits), "captions": len(nats), "tokens": tokens})


def in_batches(numbers: list[int], size: int) -> Iterable[list[int]]:
    """The numbers, so many at a time."""
    return (numbers[first : first + size] for first in range(0, len(numbers), size))

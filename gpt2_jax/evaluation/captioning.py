"""Captions of held-out images: whether the model writes them word for word, and how probable it finds them."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from gpt2_jax.data.captions import Captioned, open_captions
from gpt2_jax.errors import InputError
from gpt2_jax.evaluation.outcome import Figure, Outcome, Settings, share
from gpt2_jax.image_language_model import ImageLanguageModel
from gpt2_jax.language_model import LanguageModel

ANYWHERE = {"subset": "", "revision": "", "image_key": "", "caption_key": "", "name_key": ""}


@dataclasses.dataclass(frozen=True)
class Written:
    """A caption that a model has written.

    Attributes:
      name: of the image.
      pixels: what the model read of it.
      caption: what it wrote.
      wanted: the captions that the image has.
    """

    name: str
    pixels: np.ndarray
    caption: str
    wanted: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether it is one of them, word for word."""
        return self.caption in self.wanted


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Images that a model is still to open, for it says how they are read.

    Attributes:
      data: a folder of images with captions, as `image.source=folder` takes it; None: those that were held out when
        the model was trained.
      limit: how many at most.
    """

    data: str | None = None
    limit: int | None = None

    def of(self, lm: LanguageModel) -> tuple[Captioned, list[int]]:
        """The images, and the numbers of those that are taken.

        Raises:
          InputError: the model reads no images, or they cannot be read.
        """
        if not isinstance(lm, ImageLanguageModel):
            raise InputError("the model reads no images; give a run that was trained with image.source")
        if self.data is None:
            images = open_captions(lm.image)
            return images, images.split()[1][: self.limit]
        images = open_captions(dataclasses.replace(lm.image, source="folder", paths=self.data, **ANYWHERE))
        return images, list(range(len(images)))[: self.limit]


class CaptionedImages:
    """The examples of a task of images."""

    def examples(self, data: str | None = None, limit: int | None = None) -> Chosen:
        """See `Chosen`."""
        return Chosen(data, limit)

    def describe(self) -> str:
        """What the files hold."""
        return "a folder of images with captions, as image.source=folder takes it; or nothing, for those held out"


def write(
    lm: LanguageModel, chosen: Chosen, batch_size: int = 32, progress: Callable[[int, int, str], None] | None = None
) -> Iterator[Written]:
    """The most probable words for each image, greedily; `progress` as in `Settings`.

    Raises:
      InputError: as `Chosen.of`.
    """
    images, numbers = chosen.of(lm)
    for first in range(0, len(numbers), batch_size):
        batch = numbers[first : first + batch_size]
        pixels = [images.pixels(number) for number in batch]
        filled = pixels + pixels[-1:] * (batch_size - len(batch))  # another number of rows would be another program
        for number, own, found in zip(batch, pixels, lm.caption(filled, temperature=0)):
            yield Written(images.names[number], own, found.completion.strip(), images.captions[number])
        if progress is not None:
            progress(first + len(batch), len(numbers), "images")


def exact_match(lm: LanguageModel, examples: Chosen, settings: Settings) -> Outcome:
    """The share of images whose caption is one of theirs, and the perplexity of a token of those that they have."""
    found = list(write(lm, examples, settings.batch_size, settings.progress))
    pixels = [one.pixels for one in found for _ in one.wanted]
    texts = [text for one in found for text in one.wanted]
    logprobs = lm.caption_logprobs(pixels, texts, batch_size=settings.batch_size)
    nats, tokens = (np.array([of(own) for own in logprobs], np.float64) for of in (lambda own: -own.sum(), len))
    mean = nats.sum() / tokens.sum()
    value, n = math.exp(min(mean, 700.0)), len(nats)
    error = value * float(np.std(nats - mean * tokens, ddof=1)) * math.sqrt(n) / tokens.sum() if n > 1 else math.nan
    figures = {"exact_match": share([one.right for one in found]), "token_perplexity": Figure(value, error)}
    return Outcome(figures, {"images": len(found), "captions": n, "tokens": int(tokens.sum())})

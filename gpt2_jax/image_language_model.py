"""A language model that reads images: `caption` beside all that `LanguageModel` does with text alone.

Axes as in multimodal.py.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.generation.options import Options
from gpt2_jax.generation.request import Request, make_request
from gpt2_jax.generation.sampler import Scores, bucket
from gpt2_jax.language_model import Generation, LanguageModel
from gpt2_jax.multimodal import FIRST_ID, ImageGPT2, alone
from gpt2_jax.pixels import Image, pixels_of
from gpt2_jax.tokenizer import Tokenizer


class ImageLanguageModel(LanguageModel):
    """A model that speaks of images; `generate`, `stream` and `model` are those of its GPT-2, on text alone.

    Attributes:
      image: the `ImageConfig`, of which `size` and `channels` say what is read of an image.
    """

    def __init__(self, model: ImageGPT2, tokenizer: Tokenizer):
        super().__init__(model, tokenizer)
        self.image = model.image

    def caption(
        self, image: Image | Sequence[Image], prompt: str | Sequence[str] = "", **options: Any
    ) -> Generation | list[Generation]:
        """Continues a prompt after an image, or several prompts after an image each, in one jitted loop.

        Args:
          image: a path, the bytes of a file, a PIL image or uint8 [H, W] or [H, W, channels]; or a list of such. Of a
            model of features, vectors or paths of .npy files.
          prompt: the beginning of the caption; one for all images, or one an image.
          **options: as of `generate`, all searches among them. With a `guidance_scale` above 1 the text is led away
            from what the model would write without an image.

        Returns:
          A `Generation`, whose text and tokens are without the image; a list for a list of images or several texts.

        Raises:
          InputError: as `generate`; an image that cannot be read; another number of prompts; or control codes, which
            captions do not have.
        """
        images = list(image) if isinstance(image, list | tuple) else [image]
        prompts = [prompt] * len(images) if isinstance(prompt, str) else list(prompt)
        results = self._seeing(images, prompts).generate(prompts, **options)
        several = isinstance(image, list | tuple) or len(results) > 1
        return results if several else results[0]

    def stream_caption(self, image: Image, prompt: str = "", **options: Any) -> Iterator[str]:
        """Yields the caption of one image piece by piece, as `stream` does a text."""
        yield from self._seeing([image], [prompt]).stream(prompt, **options)

    def caption_logprobs(
        self, images: Sequence[Image], captions: Sequence[str], *, batch_size: int = 32
    ) -> list[np.ndarray]:
        """The log-probability of each token of captions after their images, and of the end-of-text that follows them.

        Args:
          images: see `caption`.
          captions: one an image; the whole must fit the context.
          batch_size: images that run together.

        Returns:
          float32 [tokens + 1] of each.

        Raises:
          InputError: none, another number of captions, one that is too long, or an image that cannot be read.
        """
        if len(images) != len(captions) or not len(images):
            raise InputError(f"there are {len(images)} images and {len(captions)} captions; give one caption an image")
        pixels = self.pixels(images)
        texts = [[*ids, self.tokenizer.end_of_text] for ids in self.tokenizer.encode_batch(captions)]
        K, context = self.image.tokens, self.config.n_positions
        longest = max(map(len, texts))
        if K + longest - 1 > context:
            raise InputError(
                f"a caption has {longest - 1} tokens; after an image of {K} positions there may be {context - K}"
            )
        T, found = bucket(K + longest - 1, context), []
        for first in range(0, len(texts), batch_size):
            part = texts[first : first + batch_size]
            tokens = np.zeros((batch_size, T + 1), np.int32)
            tokens[:, :K] = FIRST_ID + np.arange(K)
            for row, ids in zip(tokens, part):
                row[K : K + len(ids)] = ids
            batch = np.zeros((batch_size, *self.image.shape), pixels.dtype)
            batch[: len(part)] = pixels[first : first + batch_size]
            logprobs = np.asarray(_logprobs(self.model, tokens, batch))
            found += [row[K - 1 : K - 1 + len(ids)].copy() for row, ids in zip(logprobs, part)]
        return found

    def caption_perplexity(self, images: Sequence[Image], captions: Sequence[str], **options: Any) -> float:
        """The perplexity of a token of captions after their images; arguments and errors of `caption_logprobs`."""
        logprobs = np.concatenate(self.caption_logprobs(images, captions, **options))
        return math.exp(min(-logprobs.mean(dtype=np.float64), 700.0))

    def text_model(self) -> LanguageModel:
        """Its GPT-2 alone, which has GPT-2's file formats."""
        return LanguageModel(alone(self.model), self.tokenizer)

    def pixels(self, images: Sequence[Image]) -> np.ndarray:
        """What the model reads of images, see `pixels_of`: [N, ...].

        Raises:
          InputError: there are none, or one cannot be read.
        """
        if not len(images):
            raise InputError("there are no images in the list; give at least one")
        several = len(images) > 1
        return np.stack(
            [pixels_of(x, self.image, f"image {i}" if several else "the image") for i, x in enumerate(images)]
        )

    def _seeing(self, images: Sequence[Image], prompts: Sequence[str]) -> "_Seeing":
        if len(prompts) != len(images):
            raise InputError(f"there are {len(images)} images and {len(prompts)} prompts; give one prompt, or as many")
        pixels = self.pixels(images)
        padded = np.zeros((bucket(len(pixels)), *pixels.shape[1:]), pixels.dtype)  # few shapes, few compilations
        padded[: len(pixels)] = pixels
        seen = _read(self.model, padded)
        return _Seeing(self.model.seeing(seen.reshape(-1, seen.shape[-1])), self.tokenizer, len(pixels))


class _Seeing(LanguageModel):
    """A language model of which each prompt follows the image of its number."""

    def __init__(self, model: ImageGPT2, tokenizer: Tokenizer, images: int):
        super().__init__(model, tokenizer)
        K = model.image.tokens
        self._prefixes = [range(FIRST_ID + n * K, FIRST_ID + (n + 1) * K) for n in range(images)]

    def _request(self, prompts: Sequence[str], options: Options) -> Request:
        for name in ("control", "negative_control"):
            if (value := getattr(options, name)) is not None:
                raise InputError(f"{name} is {value!r}, and captions have no control codes; leave it out")
        return make_request(prompts, options, self.tokenizer, self.config, prefixes=self._prefixes)

    def result(
        self, request: Request, prompt: list[int], new: np.ndarray, reason: str, scores: Scores | None
    ) -> Generation:
        return super().result(request, prompt[self.model.image.tokens :], new, reason, scores)


_read = jax.jit(lambda model, images: model.read(images))


@jax.jit
def _logprobs(model: ImageGPT2, tokens: jax.Array, images: jax.Array) -> jax.Array:
    """tokens [B, T + 1] after their images [B, ...] -> float32 [B, T]; those of image positions mean nothing."""
    logits = model.head(model.hidden(tokens[:, :-1], images=images))
    targets = jnp.minimum(tokens[:, 1:], logits.shape[-1] - 1)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def speaking(model: Any, tokenizer: Tokenizer) -> LanguageModel:
    """The `LanguageModel` of a model, an `ImageLanguageModel` if it reads images."""
    kind = ImageLanguageModel if isinstance(model, ImageGPT2) else LanguageModel
    return kind(model, tokenizer)

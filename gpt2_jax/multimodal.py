"""GPT-2 that reads images: a prefix of embeddings stands for an image (Frozen; ClipCap, Mokady et al., 2021).

Image positions hold ids from `FIRST_ID` on, beyond any vocabulary: in training the k-th of a row is the k-th embedding
of the row's own image, with which it begins; in generation `FIRST_ID + n K + k` is that of the n-th image that the
model has been shown (`seeing`). They are looked up in place of the embedding; position embeddings are added as to any
token, and all else is GPT-2.

Axes as in model.py; K positions of an image, D width of what stands for it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.image_options import ImageConfig
from gpt2_jax.layers import Linear
from gpt2_jax.model import GPT2, model_of_shapes
from gpt2_jax.model_config import DTYPES, GPT2Config
from gpt2_jax.vision import ViT

FIRST_ID = 1 << 30  # what scatters into the vocabulary and gathers from it leave out


class Prefix(nnx.Module):
    """What stands for images as embeddings: [B, D] -> [B, K, C], or of each patch [B, K, D] -> [B, K, C]."""

    def __init__(self, image: ImageConfig, config: GPT2Config, key: jax.Array):
        keys, dtype = jax.random.split(key), DTYPES[config.dtype]
        width, out = image.features or image.n_embd, max(1, image.prefix_length) * config.n_embd
        if image.prefix_hidden:
            self.c_fc = Linear(width, (image.prefix_hidden,), keys[0], std=width**-0.5, dtype=dtype, name="prefix.c_fc")
            width = image.prefix_hidden
        # Of what has been normalised it makes embeddings as large as those of tokens.
        std = config.initializer_range * width**-0.5
        self.c_proj = Linear(width, (out,), keys[1], std=std, dtype=dtype, name="prefix.c_proj")
        self.image = image

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.image.prefix_hidden:
            x = jnp.tanh(self.c_fc(x))
        y = self.c_proj(x)
        return y.reshape(len(x), self.image.tokens, -1)


class ImageGPT2(GPT2):
    """A GPT-2 with what reads images beside it, which takes over its parameters as they are.

    Attributes:
      vision: the `ViT`, where images are pixels.
      prefix: the `Prefix`.
      image: the options.
      seen: embeddings of images, [B, K, C] of each row's own or [N K, C] of all; None: there are none.
    """

    seen: nnx.Param | None = None

    def __init__(self, gpt2: GPT2, image: ImageConfig, key: jax.Array):
        keys = jax.random.split(key)
        self.wte, self.wpe, self.ln_f = gpt2.wte, gpt2.wpe, gpt2.ln_f
        self.h = nnx.data(gpt2.h)
        if not gpt2.config.tie_word_embeddings:
            self.lm_head = gpt2.lm_head
        self.config, self.image = gpt2.config, image
        if not image.features:
            self.vision = ViT(image, gpt2.config, keys[0])
        self.prefix = Prefix(image, gpt2.config, keys[1])

    def read(self, images: jax.Array) -> jax.Array:
        """The embeddings that stand for images, uint8 [B, S, S, I] or float32 features [B, D]: [B, K, C]."""
        if self.image.features:
            return self.prefix(images.astype(self.prefix.c_proj.dtype))
        states = self.vision(images)  # [B, P, D]
        if self.image.prefix_length == 0:
            return self.prefix(states[:, int(self.image.class_token) :])
        return self.prefix(states[:, 0] if self.image.class_token else states.mean(1))

    def seeing(self, seen: jax.Array) -> "ImageGPT2":
        """The same model to which embeddings of images are known, see `seen`."""
        copy = jax.tree.unflatten(jax.tree.structure(self), jax.tree.leaves(self))
        copy.seen = nnx.Param(seen)
        return copy

    def hidden(self, tokens: jax.Array, *, images: jax.Array | None = None, **options: Any) -> jax.Array:
        """As `GPT2.hidden`, of rows that begin with their image where they have its ids."""
        model = self if images is None else self.seeing(self.read(images))
        return super(ImageGPT2, model).hidden(tokens, **options)

    def _look_up(self, tokens: jax.Array) -> jax.Array:
        if self.seen is None:
            return super()._look_up(tokens)
        seen, of_image = self.seen[...], tokens >= FIRST_ID  # [B, T]
        x = super()._look_up(jnp.where(of_image, 0, tokens))
        if seen.ndim == 3:  # each row's own, at its first positions
            rows = jnp.pad(seen, ((0, 0), (0, tokens.shape[1] - seen.shape[1]), (0, 0)))
        else:
            rows = seen[jnp.where(of_image, tokens - FIRST_ID, 0)]
        return jnp.where(of_image[..., None], rows.astype(x.dtype), x)


def alone(model: GPT2) -> GPT2:
    """The GPT-2 of a model that reads images; any other as it is."""
    if not isinstance(model, ImageGPT2):
        return model
    gpt2 = model_of_shapes(model.config, stacked=not isinstance(model.h, nnx.List))
    for name in ("wte", "wpe", "h", "ln_f", *(["lm_head"] * (not model.config.tie_word_embeddings))):
        setattr(gpt2, name, getattr(model, name))
    return gpt2


def completion(image: ImageConfig) -> Callable[[GPT2, jax.Array], GPT2]:
    """What makes the model of a run of a GPT-2 and a key: that itself, or one that reads images, too."""
    if not image.source:
        return lambda gpt2, key: gpt2
    return lambda gpt2, key: ImageGPT2(gpt2, image, jax.random.fold_in(key, 2))

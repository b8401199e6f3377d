"""A vision transformer (Dosovitskiy et al., 2020) of GPT-2's own blocks, in which every patch sees every other.

Axes: B images, S pixels of a side, I channels, P patches and the class token, D width, H heads, K head size, L layers.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from gpt2_jax.attention import attend
from gpt2_jax.image_options import ImageConfig
from gpt2_jax.layers import Embedding, LayerNorm, Linear
from gpt2_jax.model import Block
from gpt2_jax.model_config import DTYPES, REMAT_POLICIES, GPT2Config


class ViT(nnx.Module):
    """`ViT(image, config, key)(pixels uint8 [B, S, S, I]) -> states [B, P, D]`, the class token's first if it has one.

    Args:
      image: its sizes.
      config: of the GPT-2 beside it, whose `dtype` and `remat` it has.
      key: of its parameters.
    """

    def __init__(self, image: ImageConfig, config: GPT2Config, key: jax.Array):
        keys = jax.random.split(key, 4)
        blocks, D, dtype = image.blocks(config), image.n_embd, DTYPES[config.dtype]
        norm = lambda: LayerNorm(D, epsilon=image.layer_norm_epsilon, dtype=dtype)
        pixels = image.patch_size**2 * image.channels
        self.patch = Linear(pixels, (D,), keys[0], std=pixels**-0.5, dtype=dtype, name="vision.patch")
        self.wpe = Embedding(blocks.n_positions, D, keys[1], std=1.0)  # as large as patches: where they are counts
        if image.class_token:
            self.cls = Embedding(1, D, keys[2], std=1.0)
        if image.pre_norm:
            self.ln_pre = norm()
        self.h = nnx.data(jax.lax.map(lambda key: Block(blocks, key), jax.random.split(keys[3], image.n_layer)))
        self.ln_f = norm()
        self.image, self.blocks = image, blocks

    def __call__(self, pixels: jax.Array) -> jax.Array:
        x = self.patch(as_patches(normalised(pixels, self.image), self.image.patch_size).astype(self.patch.dtype))
        if self.image.class_token:
            first = jnp.broadcast_to(self.cls.embedding[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
            x = jnp.concatenate([first, x], axis=1)
        x = x + self.wpe.embedding[...].astype(x.dtype)  # [B, P, D]
        if self.image.pre_norm:
            x = self.ln_pre(x)
        scale, all_see_all = self.blocks.head_size**-0.5, jnp.ones((), bool)

        def block(x, h):
            return h(x, lambda q, k, v, key: (attend(q, k, v, scale, all_see_all), None))

        if self.blocks.remat != "none":
            block = jax.checkpoint(block, policy=REMAT_POLICIES[self.blocks.remat], prevent_cse=False)
        x, _ = jax.lax.scan(block, x, self.h)
        return self.ln_f(x)


def normalised(pixels: jax.Array, image: ImageConfig) -> jax.Array:
    """uint8 [..., I] -> float32, by the mean and the deviation of each channel."""
    mean, std = (jnp.asarray(image.of_channels(name), jnp.float32) for name in ("mean", "std"))
    return (pixels.astype(jnp.float32) / 255 - mean) / std


def as_patches(x: jax.Array, size: int) -> jax.Array:
    """[B, S, S, I] -> [B, P, size * size * I]: patches row by row, each its rows of pixels."""
    B, S, _, I = x.shape
    n = S // size
    return x.reshape(B, n, size, n, size, I).transpose(0, 1, 3, 2, 4, 5).reshape(B, n * n, size * size * I)

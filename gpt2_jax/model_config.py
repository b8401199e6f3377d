"""The shape of a GPT-2, and the four sizes that were published."""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.errors import InputError, shown

ACTIVATIONS = {
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_fast": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
LARGEST_SIZE = 2**31 - 1  # what JAX counts with
ENGINES = ("auto", "xla", "splash", "cudnn")
_ATTENTION = jax.checkpoint_policies.save_only_these_names("attention")
REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable, _ATTENTION
    ),
    "named": _ATTENTION,
    "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class GPT2Config:
    """The shape of a model; defaults are GPT-2 small (124M).

    The first block of fields is GPT-2's own `config.json`, same names and meanings.

    Attributes:
      vocab_size: entries of the vocabulary, V.
      n_positions: longest context in tokens.
      n_embd: width C; `n_head` must divide it.
      n_layer, n_head: blocks and attention heads.
      n_inner: width of the MLP; None is 4 * n_embd.
      activation_function: the MLP's, one of `ACTIVATIONS`.
      resid_pdrop, embd_pdrop, attn_pdrop: dropout rates after each residual branch, the embeddings, the softmax.
      layer_norm_epsilon: added to the variance.
      initializer_range: standard deviation of initial weights; residual projections take it times 1/sqrt(2 n_layer).
      scale_attn_weights: divide attention scores by sqrt(K).
      scale_attn_by_inverse_layer_idx: divide them by 1 + the layer's index, too.
      reorder_and_upcast_attn: multiply queries with keys in float32, whatever `dtype` is.
      tie_word_embeddings: the output layer is the input embedding.
      dtype: of activations and matrix products: "float32" or "bfloat16"; parameters are always float32.
      attention: what computes it in training: "xla" anywhere, "splash" on TPUs, "cudnn" on NVIDIA GPUs, whose memory
        does not grow with the square of the context; "auto" is the best that the devices and the dropout allow.
      remat: what the backward pass recomputes: "none", "dots" (all but matrix products and the results of attention:
        half of the memory at the speed of "none"), "named" (all but the results of attention) or "full".
      scan_unroll: blocks per iteration of the scan; n_layer compiles longest and is the fastest on CPU.
      vocab_multiple: embeddings are padded in memory to a multiple of this; padding is never predicted or saved.
    """

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    tie_word_embeddings: bool = True

    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    remat: Literal["none", "dots", "named", "full"] = "dots"
    scan_unroll: int = 1
    vocab_multiple: int = 128

    def __post_init__(self):
        sizes = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "scan_unroll", "vocab_multiple")
        for name in (*sizes, "n_inner"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= LARGEST_SIZE:
                raise InputError(f"model.{name} is {value}; it must be at least 1 and at most {LARGEST_SIZE}")
        if self.n_embd % self.n_head:
            raise InputError(
                f"model.n_head is {self.n_head}, which does not divide model.n_embd ({self.n_embd}); "
                f"use one of {', '.join(str(n) for n in range(1, 129) if self.n_embd % n == 0)}"
            )
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be in [0, 1)")
        for name in ("layer_norm_epsilon", "initializer_range"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"model.{name} is {getattr(self, name)}; it must be above 0, and finite")
        for name, known in (
            ("activation_function", ACTIVATIONS),
            ("dtype", DTYPES),
            ("attention", ENGINES),
            ("remat", REMAT_POLICIES),
        ):
            if getattr(self, name) not in known:
                raise InputError(f"model.{name} is {shown(getattr(self, name))}; it must be one of {', '.join(known)}")

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding in memory."""
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple

    @property
    def head_size(self) -> int:
        """Numbers in a query, key or value of a head: K."""
        return self.n_embd // self.n_head

    def attention_scales(self) -> jax.Array:
        """The factor of each layer's attention scores, float32 [L]."""
        scale = self.head_size**-0.5 if self.scale_attn_weights else 1.0
        layers = np.arange(1, self.n_layer + 1) if self.scale_attn_by_inverse_layer_idx else np.ones(self.n_layer)
        return jnp.asarray(scale / layers, jnp.float32)


PRESETS = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},  # 124M
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},  # 355M
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},  # 774M
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},  # 1558M
}


def preset(name: str) -> dict[str, int]:
    """The fields in which a published size differs from `GPT2Config()`: `GPT2Config(**preset("gpt2-xl"))`.

    Raises:
      InputError: `name` is none of gpt2, gpt2-medium, gpt2-large, gpt2-xl.
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; it must be one of {', '.join(PRESETS)}")
    return dict(PRESETS[name])

"""GPT-2 (Radford et al., 2019) in Flax NNX, tree style: a model is a pytree, and plain JAX transforms take it.

Parameters keep GPT-2's names (`wte wpe h.ln_1 h.attn.c_attn ...`) and `GPT2Config` those of its `config.json`. The
blocks are stacked on a leading axis under `h` and scanned; decoding takes them apart once (`unstack`).

Axes: B batch, T query length, S key length, H heads, K head size, C n_embd, V vocabulary, L layers, N = B * T rows.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gpt2_jax.attention import KVCache, attend_cached, attend_causally
from gpt2_jax.engines import make_attention
from gpt2_jax.errors import InputError
from gpt2_jax.layers import (
    MANY_ROWS,
    Embedding,
    LayerNorm,
    Linear,
    TransposedLinear,
    add_row,
    as_rows,
    dropout,
    look_up,
)
from gpt2_jax.model_config import ACTIVATIONS, DTYPES, REMAT_POLICIES, GPT2Config
from gpt2_jax.partitions import constrain, scattered, spec_of

LINEARS = (("attn", "c_attn"), ("attn", "c_proj"), ("mlp", "c_fc"), ("mlp", "c_proj"))  # of a block


class Attention(nnx.Module):
    """Causal self-attention; `c_attn` makes queries, keys and values in one product."""

    def __init__(self, config: GPT2Config, key: jax.Array):
        C, std, dtype = config.n_embd, config.initializer_range, DTYPES[config.dtype]
        keys = jax.random.split(key)
        self.c_attn = Linear(C, (3, C), keys[0], std=std, dtype=dtype, name="h.attn.c_attn")
        std /= math.sqrt(2 * config.n_layer)
        self.c_proj = Linear(C, (C,), keys[1], std=std, dtype=dtype, name="h.attn.c_proj")
        self.config = config

    def __call__(self, x, attention, key=None):
        """x [B, T, C] -> ([B, T, C], what `attention(q, k, v, key)`, all [B, H, T, K], returns beside its result)."""
        config = self.config
        B, T, C = x.shape
        keys = (None, None) if key is None else jax.random.split(key)
        heads = self.c_attn(x, key).reshape(B, T, 3, config.n_head, config.head_size)
        q, k, v = jnp.unstack(heads.transpose(2, 0, 3, 1, 4))  # [B, H, T, K]
        y, kept = attention(q, k, v, keys[0])
        y = self.c_proj(y.transpose(0, 2, 1, 3).reshape(B, T, C), key)
        return dropout(y, config.resid_pdrop, keys[1]), kept


class MLP(nnx.Module):
    """The two products of a block, with an activation between them."""

    def __init__(self, config: GPT2Config, key: jax.Array):
        C, std, dtype = config.n_embd, config.initializer_range, DTYPES[config.dtype]
        inner = config.n_inner or 4 * C
        keys = jax.random.split(key)
        self.c_fc = Linear(C, (inner,), keys[0], std=std, dtype=dtype, name="h.mlp.c_fc")
        std /= math.sqrt(2 * config.n_layer)
        self.c_proj = Linear(inner, (C,), keys[1], std=std, dtype=dtype, name="h.mlp.c_proj")
        self.config = config

    def __call__(self, x, key=None):
        x = ACTIVATIONS[self.config.activation_function](self.c_fc(x, key))
        return dropout(self.c_proj(x, key), self.config.resid_pdrop, key)


class Block(nnx.Module):
    """Attention and MLP, each after a LayerNorm and added to what goes in."""

    def __init__(self, config: GPT2Config, key: jax.Array):
        norm = functools.partial(
            LayerNorm, config.n_embd, epsilon=config.layer_norm_epsilon, dtype=DTYPES[config.dtype]
        )
        keys = jax.random.split(key)
        self.ln_1 = norm()
        self.attn = Attention(config, keys[0])
        self.ln_2 = norm()
        self.mlp = MLP(config, keys[1])

    def __call__(self, x, attention, key=None):
        """x [B, T, C] -> ([B, T, C], what `attention` keeps), see `Attention`."""
        keys = (None, None) if key is None else jax.random.split(key)
        y, kept = self.attn(self.ln_1(x), attention, keys[0])
        x = constrain(x + y, "<stream>")
        return constrain(x + self.mlp(self.ln_2(x), keys[1]), "<stream>"), kept


class GPT2(nnx.Module):
    """The language model: `GPT2(config, key)(tokens [B, T]) -> logits [B, T, V]`, float32."""

    def __init__(self, config: GPT2Config, key: jax.Array):
        keys = jax.random.split(key, 4)
        C, std = config.n_embd, config.initializer_range
        V, rows = config.vocab_size, config.padded_vocab_size
        self.wte = Embedding(rows, C, keys[0], std=std, used=V)
        self.wpe = Embedding(config.n_positions, C, keys[1], std=std)
        # One after another: side by side they would need as much memory again for random bits.
        self.h = nnx.data(jax.lax.map(lambda key: Block(config, key), jax.random.split(keys[2], config.n_layer)))
        self.ln_f = LayerNorm(C, epsilon=config.layer_norm_epsilon, dtype=DTYPES[config.dtype])
        if not config.tie_word_embeddings:
            self.lm_head = Embedding(rows, C, keys[3], std=std, used=V)
        self.config = config

    def __call__(
        self,
        tokens: jax.Array,
        *,
        key: jax.Array | None = None,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of the token after each position.

        Args:
          tokens: int [B, T] ids in [0, V), T at most n_positions. Ids are checked outside jit only; a shape always.
          key: drops units as in training; None (the default) drops nothing.
          segments: int [B, T]; a token sees those of its own segment up to itself. None: all are one.
          positions: int [B, T] in [0, n_positions), checked as ids are. None: 0 ... T - 1.

        Returns:
          float32 [B, T, V].

        Raises:
          InputError: wrong rank, shape or dtype, too long a context, or an id or position out of range.
        """
        tokens = check_tokens(self.config, tokens)
        segments = check_rows("segments", segments, tokens)
        positions = check_rows("positions", positions, tokens, below=self.config.n_positions)
        x = self.hidden(tokens, key=key, segments=segments, positions=positions)
        return self.head(x)[..., : self.config.vocab_size]

    def hidden(
        self,
        tokens: jax.Array,
        *,
        key: jax.Array | None = None,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> jax.Array:
        """tokens [B, T] -> final normalised states [B, T, C] in `config.dtype`, over the stacked blocks or a list.

        `segments` and `positions` as in `__call__`, unchecked.
        """
        config = self.config
        keys = (None, None) if key is None else jax.random.split(key)
        T = tokens.shape[1]
        table = self.wpe.embedding[...]
        table = table[:T] if positions is None else look_up(table, positions, "wpe.embedding")
        x = constrain(dropout(self._embed(tokens, table), config.embd_pdrop, keys[0]), "<stream>")
        attend = make_attention(config, T, segments)
        block_keys = None if key is None else jax.random.split(keys[1], config.n_layer)

        def block(x, layer):
            h, scale, key = layer

            return h(x, lambda q, k, v, key: (attend(q, k, v, scale, key), None), key)

        if config.remat != "none":
            # Within a loop nothing can be shared with the forward pass; where blocks follow each other XLA would.
            in_loop = config.scan_unroll == 1 and not isinstance(self.h, nnx.List)
            block = jax.checkpoint(block, policy=REMAT_POLICIES[config.remat], prevent_cse=not in_loop)
        if isinstance(self.h, nnx.List):
            for i, h in enumerate(self.h):
                x, _ = block(x, (h, config.attention_scales()[i], None if key is None else block_keys[i]))
        else:
            x, _ = jax.lax.scan(block, x, (self.h, config.attention_scales(), block_keys), unroll=config.scan_unroll)
        return self.ln_f(x)

    def prefill(self, tokens: jax.Array, slots: int) -> tuple[jax.Array, tuple[KVCache, ...]]:
        """`hidden` for an unstacked model that keeps keys and values.

        Args:
          tokens: int [B, T], at positions 0 ... T - 1.
          slots: of the caches, at least T.

        Returns:
          (states [B, T, C], one `KVCache` a layer with the first T slots filled).
        """

        def attention(q, k, v, scale):
            y = attend_causally(q, k, v, scale, upcast=self.config.reorder_and_upcast_attn)
            return y, KVCache.of(k, v, slots)

        return self._through_blocks(self._embed(tokens, self.wpe.embedding[: tokens.shape[1]]), attention)

    def decode(
        self, tokens: jax.Array, positions: jax.Array, mask: jax.Array, cache: Sequence[KVCache], slot: jax.Array | int
    ) -> tuple[jax.Array, tuple[KVCache, ...]]:
        """`prefill`'s next tokens.

        Args:
          tokens, positions: int [B, T].
          mask: bool [B, T, S], True where a query may attend to a slot of the cache.
          cache: one `KVCache` of S slots a layer.
          slot: where this call's T keys and values are written.

        Returns:
          (states [B, T, C], the caches written to).
        """
        caches = iter(cache)

        def attention(q, k, v, scale):
            written = next(caches).write(k, v, slot)
            upcast = self.config.reorder_and_upcast_attn
            return attend_cached(q, written, scale, mask, upcast=upcast), written

        return self._through_blocks(self._embed(tokens, self.wpe.embedding[positions]), attention)

    def _through_blocks(self, x: jax.Array, attention: Callable) -> tuple[jax.Array, tuple[KVCache, ...]]:
        kept = []
        for h, scale in zip(self.h, self.config.attention_scales()):
            x, of_layer = h(x, lambda q, k, v, _, scale=scale: attention(q, k, v, scale))
            kept.append(of_layer)
        return self.ln_f(x), tuple(kept)

    def head(self, x: jax.Array) -> jax.Array:
        """states [..., C] -> float32 logits [..., padded V]; those of padding are the lowest finite number."""
        name, table = self.head_table()
        logits = logits_of(self.config, scattered(table.astype(x.dtype), spec_of(name)), x)
        return constrain(logits, "<logits>") if logits.ndim == 3 else logits

    def head_table(self) -> tuple[str, jax.Array]:
        """The name and value of the parameter [padded V, C] that makes logits of states."""
        name = "wte" if self.config.tie_word_embeddings else "lm_head"
        return f"{name}.embedding", getattr(self, name).embedding[...]

    def _embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """tokens [B, T], position rows [T, C] or [B, T, C] -> [B, T, C] in `config.dtype`."""
        x = self._look_up(tokens)
        if positions.ndim == 2:
            x = add_row(x.reshape(len(x), -1), positions.reshape(-1)).reshape(x.shape)
        else:
            x = x + positions
        return x.astype(DTYPES[self.config.dtype])

    def _look_up(self, tokens: jax.Array) -> jax.Array:
        """tokens [B, T] -> their rows of the embedding [B, T, C]."""
        return look_up(self.wte.embedding[...], tokens, "wte.embedding")


def logits_of(config: GPT2Config, table: jax.Array, x: jax.Array) -> jax.Array:
    """`GPT2.head` of a table [padded V, C] in the dtype of the states [..., C]."""
    rows = as_rows(x)
    few = rows.ndim == 2 and len(rows) < MANY_ROWS  # as in TransposedLinear
    operands = ("vc,nc->vn", table, rows) if few else ("...c,vc->...v", rows, table)
    logits = jnp.einsum(*operands, preferred_element_type=jnp.float32)
    if config.padded_vocab_size != config.vocab_size:
        real = jnp.arange(config.padded_vocab_size) < config.vocab_size
        logits = jnp.where(real[:, None] if few else real, logits, jnp.finfo(jnp.float32).min)
    return (logits.T if few else logits).reshape(*x.shape[:-1], -1)


def check_tokens(config: GPT2Config, tokens: jax.Array | np.ndarray | Sequence[Sequence[int]]) -> jax.Array:
    """`tokens` as an array, if they are int [B, T], T in 1..n_positions, with ids in [0, V) (outside jit only).

    Raises:
      InputError: they are not.
    """
    if not isinstance(tokens, jax.Array):
        try:
            tokens = np.asarray(tokens)
        except ValueError:
            raise InputError("tokens are rows of different lengths; run them one by one, or pad them all") from None
    shape, dtype = tokens.shape, tokens.dtype
    if len(shape) != 2 or shape[1] == 0 or not jnp.issubdtype(dtype, jnp.integer):
        raise InputError(f"tokens are {dtype}{list(shape)}; they must be integers [batch, length], length 1 or more")
    if shape[1] > config.n_positions:
        raise InputError(
            f"the sequence has {shape[1]} tokens; the model's context is {config.n_positions}: cut it (tokens[:, "
            f"-{config.n_positions}:]) or use a model with a larger n_positions"
        )
    if not isinstance(tokens, jax.core.Tracer) and np.size(tokens):
        low, high = int(np.min(tokens)), int(np.max(tokens))
        if low < 0 or high >= config.vocab_size:
            bad = low if low < 0 else high
            raise InputError(
                f"token id {bad} is outside the vocabulary; ids must be from 0 to {config.vocab_size - 1}: encode the "
                "text with this model's own tokenizer"
            )
    return jnp.asarray(tokens)


def check_rows(
    name: str, rows: jax.Array | np.ndarray | None, tokens: jax.Array, below: int | None = None
) -> jax.Array | None:
    """`rows` as an array, if they are None or int of the shape of `tokens`, from 0 to `below` - 1 (outside jit only).

    Raises:
      InputError: they are not.
    """
    if rows is None:
        return None
    rows = jnp.asarray(rows)
    if rows.shape != tokens.shape or not jnp.issubdtype(rows.dtype, jnp.integer):
        raise InputError(
            f"{name} are {rows.dtype}{list(rows.shape)}; they must be integers {list(tokens.shape)}, one a token"
        )
    if below is not None and not isinstance(rows, jax.core.Tracer):
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= below:
            raise InputError(f"{name} are from {low} to {high}; they must be from 0 to {below - 1}")
    return rows


def unstack(model: GPT2) -> GPT2:
    """The same model for decoding: `h` is a list of blocks, whose matrices are `TransposedLinear`.

    2x faster on CPU than slices of a stack, which are copies there.
    """
    if isinstance(model.h, nnx.List):
        return model
    graph, leaves = jax.tree.structure(model), jax.tree.leaves(model)
    copy = jax.tree.unflatten(graph, leaves)
    copy.h = nnx.List([_for_decoding(jax.tree.map(lambda x, i=i: x[i], model.h)) for i in range(model.config.n_layer)])
    return copy


def _for_decoding(block: Block) -> Block:
    for part, name in LINEARS:
        setattr(getattr(block, part), name, TransposedLinear(getattr(getattr(block, part), name)))
    return block


def model_of_shapes(config: GPT2Config, *, stacked: bool) -> GPT2:
    """A model of shapes alone, blocks stacked or unstacked."""
    make = functools.partial(GPT2, config)
    return jax.eval_shape(make if stacked else lambda key: unstack(make(key)), jax.random.key(0))


def num_parameters(model: GPT2) -> int:
    """Its numbers, padding not counted; works on arrays, on shapes (`jax.eval_shape`) and on a part of a model."""
    padding = (model.config.padded_vocab_size - model.config.vocab_size) * model.config.n_embd
    padded = ("wte.embedding", "lm_head.embedding")
    leaves = zip(jax.tree.leaves(parameter_names(model)), jax.tree.leaves(model))
    return sum(math.prod(x.shape) - padding * (name in padded) for name, x in leaves)


def parameter_name(path: tuple[Any, ...]) -> str:
    """The dotted name of a leaf from its key path: "h.attn.c_attn.kernel"; the same within optimizer moments."""
    names = (str(getattr(entry, "name", getattr(entry, "key", getattr(entry, "idx", "")))) for entry in path)
    return ".".join(name for name in names if name not in ("", "value"))


def parameter_names(tree: Any) -> Any:
    """A tree of the same structure with each leaf's dotted name."""
    return jax.tree_util.tree_map_with_path(lambda path, _: parameter_name(path), tree)

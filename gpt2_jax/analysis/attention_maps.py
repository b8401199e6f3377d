"""Where each head of each layer looks: a model and a text in, arrays out.

A layer runs at a time, by one compiled program for all of them, and the attention weights [H, T, S] of no other are
kept: 1,024 tokens through GPT-2 small take 50 MB for them. The model is the one that is trained or generates; only what
its blocks call for attention is another function, which gives the weights as well.

Axes as in model.py; S = T keys.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gpt2_jax.analysis.token_labels import Text, labels, tokens_of
from gpt2_jax.errors import InputError, check
from gpt2_jax.generation.sampler import bucket
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.model import GPT2, Block
from gpt2_jax.model_config import DTYPES
from gpt2_jax.tokenizer import Tokenizer

REPEATED, REPEATS = 25, 4  # random tokens, and how often they come: Olsson et al., 2022
STATISTICS = {
    "distance": "mean attention distance (tokens)",
    "entropy": "entropy of attention (nats)",
    "previous_token": "attention to the previous token",
    "first_token": "attention to the first token",
    "induction": "induction score",
}


@dataclasses.dataclass(frozen=True)
class AttentionMap:
    """The attention of a layer.

    Attributes:
      layer: from 0.
      weights: float32 [H, T, S]; row t, of the query, sums to 1 over keys 0 ... t.
      tokens: int32 [T].
      labels: of the tokens, see token_labels.py.
    """

    layer: int
    weights: np.ndarray
    tokens: np.ndarray
    labels: list[str]


@dataclasses.dataclass(frozen=True)
class HeadStatistics:
    """What kind each head is, float32 [L, H] each, means over all queries but the first, which sees only itself.

    Attributes:
      distance: how many tokens back a head looks, weighted by its attention.
      entropy: of the attention over keys, in nats; 0 looks at one token.
      previous_token, first_token: attention to the token before, and to the first of all, in [0, 1]. For the second
        token these are the same.
      induction: attention to the tokens after earlier occurrences of the query's token, in [0, 1], over queries that
        have such; see `head_statistics`.
      induction_of_text: whether these are the text's own tokens, not random ones that are repeated.
      tokens: how many the statistics are of.
    """

    distance: np.ndarray
    entropy: np.ndarray
    previous_token: np.ndarray
    first_token: np.ndarray
    induction: np.ndarray
    induction_of_text: bool
    tokens: int


def attention_of(lm: LanguageModel, text: Text, layer: int) -> AttentionMap:
    """The attention weights of all heads of a layer.

    Args:
      lm: not a mix.
      text: text, ids or a `Generation`, read as `generate` reads it; at most a context.
      layer: from 0; negative ones count from the last, -1.

    Raises:
      InputError: no such layer, no token or too many, or a mix.
    """
    tokens = _read(lm, text, fewest=1)
    n = lm.config.n_layer
    check(type(layer) is int and -n <= layer < n, "layer", layer, f"from 0 to {n - 1}, or -1, the last, to {-n}")
    weights = attention_weights(lm.model, tokens, layer % n)
    return AttentionMap(layer % n, weights, tokens, labels(lm.tokenizer, tokens))


def attention_weights(model: GPT2, tokens: np.ndarray, layer: int) -> np.ndarray:
    """int [T] -> float32 [H, T, S] of a layer; the model's blocks are stacked, as in training, or not."""
    T = len(tokens)
    for i, weights in enumerate(_through_layers(model, tokens, _whole)):
        if i == layer:
            return np.asarray(weights)[:, :T, :T]
    raise InputError(f"layer is {layer}; it must be from 0 to {model.config.n_layer - 1}")


def head_statistics(lm: LanguageModel, text: Text, *, induction_of_text: bool = False) -> HeadStatistics:
    """What kind each head is, by its attention on a text.

    The induction score is that of prefix matching of Olsson et al. (2022): of end-of-text and 25 random tokens that
    follow each other four times (fewer of them where the context or the vocabulary is small), a query's attention to
    the tokens that came after its own token before, all of them together; the mean over the repeats. The tokens are
    drawn uniformly, each once, from all but the special ones, always the same for a tokenizer. (The paper leaves out
    the most and least common ones, too.)

    Args:
      lm: not a mix.
      text: text, ids or a `Generation`; 2 tokens to a context.
      induction_of_text: score induction on the text itself, by its tokens that were there before, instead.

    Raises:
      InputError: too few tokens or too many, a mix, or `induction_of_text` where no token comes twice.
    """
    tokens = _read(lm, text, fewest=2)
    found = statistics_of_heads(lm.model, tokens)
    if induction_of_text and np.isnan(found["induction"]).any():
        raise InputError(
            f"none of the text's {len(tokens)} tokens comes twice with another after it, so there is no induction to "
            "score; give a longer text, or leave out induction_of_text"
        )
    if not induction_of_text:
        repeated = repeated_tokens(lm.tokenizer, lm.config.n_positions, lm.config.vocab_size)
        found["induction"] = statistics_of_heads(lm.model, repeated)["induction"]
    return HeadStatistics(**found, induction_of_text=induction_of_text, tokens=len(tokens))


def statistics_of_heads(model: GPT2, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """int [T] -> float32 [L, H] for each of `STATISTICS`; induction is not a number where no token comes twice."""
    layers = [np.asarray(found) for found in _through_layers(model, tokens, _statistics)]
    return dict(zip(STATISTICS, np.stack(layers, axis=1)))


def repeated_tokens(tokenizer: Tokenizer, context: int, vocab_size: int) -> np.ndarray:
    """Int32 [T]: end-of-text, then random tokens again and again, see `head_statistics`."""
    plain = [i for i in range(min(len(tokenizer), vocab_size)) if tokenizer.spelling(i)]
    n = min(REPEATED, len(plain), (context - 1) // REPEATS)
    check(n >= 2, "n_positions", context, f"at least {2 * REPEATS + 1}, and the vocabulary at least 2, for induction")
    drawn = np.random.default_rng(0).choice(plain, n, replace=False)
    return np.array([tokenizer.end_of_text, *np.tile(drawn, REPEATS)], np.int32)


def _read(lm: LanguageModel, text: Text, fewest: int) -> np.ndarray:
    if not isinstance(lm.model, GPT2):
        raise InputError("a mix of models has no attention of its own; look at one of the models that it is made of")
    tokens, context = tokens_of(lm, text), lm.config.n_positions
    if not fewest <= len(tokens) <= context:
        raise InputError(
            f"the text has {len(tokens)} tokens; to show its attention there must be from {fewest} to {context}, the "
            "model's context: give " + ("more text" if len(tokens) < fewest else "a part of it")
        )
    return tokens


def _through_layers(model: GPT2, tokens: np.ndarray, reduce: Callable) -> Iterator[jax.Array]:
    """What `reduce` makes of each layer's weights, of tokens filled up to a bucket: another text compiles nothing."""
    config = model.config
    padded = np.zeros(bucket(len(tokens), config.n_positions), np.int32)
    padded[: len(tokens)] = tokens
    x = _embed(model.wte, model.wpe, padded, DTYPES[config.dtype])
    for block, scale in zip(_blocks(model), config.attention_scales()):
        x, found = _layer(block, x, scale, padded, np.int32(len(tokens)), reduce)
        yield found


def _blocks(model: GPT2) -> Iterator[Block]:
    """One at a time: of a stack, each is a copy."""
    if isinstance(model.h, nnx.List):
        yield from model.h
    else:
        for i in range(model.config.n_layer):
            yield jax.tree.map(lambda x, i=i: x[i], model.h)


@functools.partial(jax.jit, static_argnames="dtype")
def _embed(wte: nnx.Module, wpe: nnx.Module, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """tokens [T] -> [1, T, C]."""
    return (wte.embedding[...][tokens] + wpe.embedding[: len(tokens)]).astype(dtype)[None]


@functools.partial(jax.jit, static_argnames="reduce")
def _layer(block: Block, x: jax.Array, scale: jax.Array, tokens: jax.Array, length: jax.Array, reduce: Callable):
    """x [1, T, C] -> ([1, T, C], `reduce` of the weights, the tokens [T] and how many of them are text)."""
    upcast = block.attn.config.reorder_and_upcast_attn

    def attention(q, k, v, _):
        y, weights = attend_openly(q, k, v, scale, upcast=upcast)
        return y, reduce(weights[0], tokens, length)

    return block(x, attention)


def attend_openly(q: jax.Array, k: jax.Array, v: jax.Array, scale: jax.Array, *, upcast: bool):
    """`attention.attend_causally` that holds its weights: -> ([B, H, T, K], float32 [B, H, T, S])."""
    einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    if upcast:
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    T = q.shape[2]
    scores = einsum("bhtk,bhsk->bhts", q, k) * scale
    causal = jnp.arange(T) <= jnp.arange(T)[:, None]
    weights = jax.nn.softmax(scores, where=causal, axis=-1)
    return einsum("bhts,bhsk->bhtk", weights.astype(v.dtype), v).astype(v.dtype), weights


def _whole(weights: jax.Array, tokens: jax.Array, length: jax.Array) -> jax.Array:
    return weights


def _statistics(weights: jax.Array, tokens: jax.Array, length: jax.Array) -> jax.Array:
    """weights [H, T, S], tokens [T] -> float32 [len(STATISTICS), H]."""
    place = jnp.arange(len(tokens))
    back = place[:, None] - place  # [T, S]: how far each key is behind the query
    counted = (place > 0) & (place < length)
    mean = lambda of_query, counted=counted: jnp.where(counted, of_query, 0).sum(-1) / counted.sum()
    over = lambda where: jnp.einsum("hts,ts->ht", weights, where.astype(jnp.float32))
    entropy = -jax.scipy.special.xlogy(weights, weights).sum(-1)
    after_same = (jnp.roll(tokens, 1) == tokens[:, None]) & (place > 0) & (back > 0)
    return jnp.stack(
        [
            mean(over(back * (back > 0))),
            mean(entropy),
            mean(over(back == 1)),
            mean(weights[:, :, 0]),
            mean(over(after_same), counted & after_same.any(-1)),
        ]
    )

"""Several models that write one text: DExperts (Liu et al., 2021), by the sum of their logits.

A `Mix` has what generation asks of a `GPT2`: its states are those of all its models, side by side, and its cache is
theirs, one after the other. So every way of drawing, beams, guidance and stop strings take it as they take a model.

Axes as in model.py; E the widths of all models together.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gpt2_jax.attention import KVCache
from gpt2_jax.errors import InputError
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.model import GPT2, check_tokens, unstack
from gpt2_jax.model_config import DTYPES, GPT2Config
from gpt2_jax.tokenizer import Tokenizer

LARGEST_WEIGHT = 1e6  # of logits, so that none outgrows float32


def mix(
    base: LanguageModel,
    *,
    expert: LanguageModel | None = None,
    anti_expert: LanguageModel | None = None,
    alpha: float = 2.0,
) -> LanguageModel:
    """A language model whose next token's logits are `base + alpha * (expert - anti_expert)`.

    Without an anti-expert they are `base + alpha * expert`, a product of experts; without an expert the base model is
    that, as in the paper: `base + alpha * (base - anti_expert)`. Another alpha compiles nothing anew, and mixing copies
    no parameters. All models read the text; the context is the smallest of theirs.

    Args:
      base: the model to be led; its tokenizer is the mix's.
      expert, anti_expert: models of the same vocabulary, of any sizes, such as small ones that were trained on wanted
        and unwanted text. At least one.
      alpha: how far to lead; 0 leaves the base model.

    Raises:
      InputError: no expert at all, another vocabulary, a mix among them, or an alpha that is not finite.
    """
    given = {"expert": expert, "anti_expert": anti_expert}
    experts = {name: lm for name, lm in given.items() if lm is not None}
    if not experts:
        raise InputError("a mix of one model is that model; give expert=, anti_expert= or both")
    for name, lm in {"base": base, **experts}.items():
        if not isinstance(lm.model, GPT2):
            raise InputError(f"{name} is a mix of models; mix models that were loaded")
    for name, lm in experts.items():
        _check_same_vocabulary(name, lm, base)
    if not abs(alpha) <= LARGEST_WEIGHT:
        raise InputError(f"alpha is {alpha}; it must be a number from {-LARGEST_WEIGHT:g} to {LARGEST_WEIGHT:g}")
    weights = {"expert": alpha, "anti_expert": -alpha}
    first = 1.0 if "expert" in experts else 1.0 + alpha
    models = [base.model, *(lm.model for lm in experts.values())]
    return LanguageModel(Mix(models, [first, *(weights[name] for name in experts)]), base.tokenizer)


class Mix(nnx.Module):
    """Models of one vocabulary whose logits are added up: `Mix(models, weights)(tokens [B, T]) -> logits [B, T, V]`.

    Attributes:
      models: unstacked ones (`gpt2_jax.model.unstack`).
      weights: float32 [models], traced.
      config: the first model's, with the smallest context and without padding of the vocabulary.
    """

    def __init__(self, models: Sequence[GPT2], weights: Sequence[float]):
        self.models = nnx.List([unstack(model) for model in models])
        self.weights = nnx.Param(jnp.asarray(weights, jnp.float32))
        context = min(model.config.n_positions for model in models)
        self.config: GPT2Config = dataclasses.replace(models[0].config, n_positions=context, vocab_multiple=1)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of the token after each position, as `GPT2.__call__` gives them: int [B, T] -> float32 [B, T, V]."""
        return self.head(self.hidden(check_tokens(self.config, tokens)))

    def hidden(self, tokens: jax.Array) -> jax.Array:
        """tokens [B, T] -> the states of all models side by side, [B, T, E]."""
        return _beside([model.hidden(tokens) for model in self.models])

    def prefill(self, tokens: jax.Array, slots: int) -> tuple[jax.Array, tuple[KVCache, ...]]:
        """As `GPT2.prefill`, of all models."""
        states, caches = zip(*(model.prefill(tokens, slots) for model in self.models))
        return _beside(states), tuple(itertools.chain(*caches))

    def decode(
        self, tokens: jax.Array, positions: jax.Array, mask: jax.Array, cache: Sequence[KVCache], slot: jax.Array | int
    ) -> tuple[jax.Array, tuple[KVCache, ...]]:
        """As `GPT2.decode`, of all models."""
        layers = iter(cache)
        states, caches = zip(
            *(
                model.decode(tokens, positions, mask, tuple(itertools.islice(layers, model.config.n_layer)), slot)
                for model in self.models
            )
        )
        return _beside(states), tuple(itertools.chain(*caches))

    def head(self, x: jax.Array) -> jax.Array:
        """states [..., E] -> float32 logits [..., V], the weighted sum of those of all models."""
        widths = [model.config.n_embd for model in self.models]
        states = jnp.split(x, np.cumsum(widths)[:-1], axis=-1)
        logits = [
            model.head(own.astype(DTYPES[model.config.dtype]))[..., : self.config.vocab_size]
            for model, own in zip(self.models, states)
        ]
        return sum(weight * of_model for weight, of_model in zip(self.weights[...], logits))


def _beside(states: Sequence[jax.Array]) -> jax.Array:
    """States [..., C] of several models side by side, in the widest type of theirs, which keeps all of each."""
    return jnp.concatenate(states, axis=-1)


def _check_same_vocabulary(name: str, lm: LanguageModel, base: LanguageModel) -> None:
    if lm.config.vocab_size != base.config.vocab_size:
        raise InputError(
            f"{name} has a vocabulary of {lm.config.vocab_size:,} and base one of {base.config.vocab_size:,}; train it "
            "with base's tokenizer (--config.data.tokenizer=...)"
        )
    tokens, others = _entries(base.tokenizer), _entries(lm.tokenizer)
    if tokens != others:
        differs = next((i for i, pair in enumerate(zip(tokens, others)) if pair[0] != pair[1]), len(tokens))
        raise InputError(
            f"{name} has another tokenizer than base, from token {differs} on; train it with base's tokenizer "
            "(--config.data.tokenizer=...)"
        )


def _entries(tokenizer: Tokenizer) -> list[tuple[bytes, str]]:
    """What each id stands for: bytes, or the name of a special token."""
    return [(tokenizer.spelling(i), tokenizer.decode([i], skip_special=False)) for i in range(len(tokenizer))]

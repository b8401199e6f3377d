"""What a model expected of a text, token by token: a text in, arrays out.

The text begins after end-of-text. One that is longer than the context goes through it in windows that overlap by half,
so that each token is predicted from at least half a context of those before it.

Axes as in model.py; k alternatives, K positions at a time.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.analysis.token_labels import Text, labels, running_text, tokens_of
from gpt2_jax.errors import InputError, check
from gpt2_jax.evaluation.perplexity import windows
from gpt2_jax.generation.sampler import bucket
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.model import GPT2

RANKS = {"top 10": 10, "top 100": 100, "top 1,000": 1_000, "beyond": np.inf}  # classes: Gehrmann et al., 2019
AT_A_TIME = 64  # positions whose logits are in memory


@dataclasses.dataclass(frozen=True)
class TokenProbabilities:
    """Each token of a text under the model, given those before it.

    Attributes:
      tokens: int32 [T]; an end-of-text that begins the text is not among them.
      labels: of the tokens, see token_labels.py.
      texts: the same to be read one after the other, with whole characters (`token_labels.running_text`).
      surprisal: float32 [T], -log2 of the probability, in bits.
      rank: int32 [T], 1 if no other token was more probable.
      entropy: float32 [T], of what the model expected in the token's place, in bits: its mean surprisal.
      top_tokens, top_labels: int32 [T, k], and k for each token: the most probable ones in its place, in their order.
      top_logprobs: float32 [T, k], in nats as everywhere.
    """

    tokens: np.ndarray
    labels: list[str]
    texts: list[str]
    surprisal: np.ndarray
    rank: np.ndarray
    entropy: np.ndarray
    top_tokens: np.ndarray
    top_labels: list[list[str]]
    top_logprobs: np.ndarray

    @property
    def perplexity(self) -> float:
        """Of a token."""
        return float(2 ** self.surprisal.mean(dtype=np.float64))

    @property
    def rank_class(self) -> np.ndarray:
        """Int [T]: which of `RANKS` each token is in, as in GLTR (Gehrmann et al., 2019)."""
        return np.searchsorted(list(RANKS.values()), self.rank)

    @property
    def top_probabilities(self) -> np.ndarray:
        """Float32 [T, k], of the alternatives."""
        return np.exp(self.top_logprobs)

    def _repr_html_(self) -> str:
        """The coloured text, in a notebook."""
        from gpt2_jax.analysis.coloured_text import fragment  # which imports this module

        return fragment(self)


def token_probabilities(lm: LanguageModel, text: Text, top_k: int = 10) -> TokenProbabilities:
    """What a model expected of a text: how surprising each token is, and what would have been more probable.

    Args:
      lm: any, a mix too.
      text: text, ids or a `Generation`, of any length; after end-of-text, which may be its first id.
      top_k: alternatives for each token; another number compiles another program, another text does not.

    Raises:
      InputError: no token, or a `top_k` out of range.
    """
    V, context = lm.config.vocab_size, lm.config.n_positions
    check(type(top_k) is int and 1 <= top_k <= V, "top_k", top_k, f"a whole number from 1 to the vocabulary's {V}")
    tokens, end = tokens_of(lm, text), lm.tokenizer.end_of_text
    tokens = tokens[1:] if len(tokens) and tokens[0] == end else tokens
    if not len(tokens):
        raise InputError("the text is empty: it has no token whose probability could be told; give a text with some")
    sequence = np.array([end, *tokens], np.int32)
    parts = []
    for begin, start, stop in windows(len(sequence), context, max(1, context // 2)):
        parts.append([x[start - 1 :] for x in given_those_before(lm.model, sequence[begin:stop], top_k)])
    logprobs, rank, entropy, top_tokens, top_logprobs = map(np.concatenate, zip(*parts))
    return TokenProbabilities(
        tokens=tokens,
        labels=labels(lm.tokenizer, tokens),
        texts=running_text(lm.tokenizer, tokens),
        surprisal=np.abs(logprobs / np.float32(math.log(2))),  # not -0
        rank=rank,
        entropy=entropy / np.float32(math.log(2)),
        top_tokens=top_tokens,
        top_labels=[labels(lm.tokenizer, row) for row in top_tokens],
        top_logprobs=top_logprobs,
    )


def given_those_before(model: GPT2, ids: Sequence[int] | np.ndarray, top_k: int) -> tuple[np.ndarray, ...]:
    """Of each token but the first: log-probability, rank, entropy in nats [T - 1], `top_k` alternatives and theirs.

    `ids` are int [T], at most one more than a context; those of another bucket of lengths compile anew.
    """
    padded = np.zeros(bucket(len(ids) - 1, model.config.n_positions) + 1, np.int32)
    padded[: len(ids)] = ids
    return tuple(np.asarray(x)[: len(ids) - 1] for x in _probabilities(model, padded, top_k))


@functools.partial(jax.jit, static_argnames="top_k")
def _probabilities(model: GPT2, tokens: jax.Array, top_k: int) -> tuple[jax.Array, ...]:
    """tokens [T + 1] -> of the last T log-probability, rank, entropy [T], most probable tokens and theirs [T, k]."""
    T = len(tokens) - 1
    x, _ = model.prefill(tokens[None, :-1], T)  # XLA's attention, whatever the model was trained with
    K = min(AT_A_TIME, T)
    whole = -T % K  # positions that fill the last turn
    states = jnp.pad(x[0], ((0, whole), (0, 0))).reshape(-1, K, x.shape[-1])
    targets = jnp.pad(tokens[1:], (0, whole)).reshape(-1, K)

    def turn(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        states, targets = part
        logits = model.head(states)[:, : model.config.vocab_size]  # [K, V]
        logprobs = jax.nn.log_softmax(logits)
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)
        rank = 1 + (logits > chosen).sum(-1)
        entropy = -(jnp.exp(logprobs) * logprobs).sum(-1)
        top_logprobs, top_tokens = jax.lax.top_k(logprobs, top_k)
        return jnp.take_along_axis(logprobs, targets[:, None], axis=1)[:, 0], rank, entropy, top_tokens, top_logprobs

    found = jax.lax.map(turn, (states, targets))
    return tuple(rows.reshape(-1, *rows.shape[2:])[:T] for rows in found)

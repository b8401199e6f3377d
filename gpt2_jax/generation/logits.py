"""What bends the next token's logits before one is chosen: pure functions on float32 [B, V], one for each control.

A banned token gets `LOWEST`, never an infinity, and no logit becomes one. Every setting may be traced, and be one for
all rows or have a leading axis B, one a row. Histories are read by gathers and written by scatters over their S tokens,
never as [B, S, V]. Axes: B rows, V vocabulary, S tokens of history, N phrases of at most M tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

LOWEST = float(np.finfo(np.float32).min)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """The text so far of each row.

    Attributes:
      tokens: int32 [B, S], a row's prompt and then its new tokens; what lies at or past `lengths` means nothing.
      lengths: int32 [B], prompt and new tokens together.
      prompt_lengths: int32 [B].
    """

    tokens: jax.Array
    lengths: jax.Array
    prompt_lengths: jax.Array

    @property
    def new(self) -> jax.Array:
        """How many tokens are new, int32 [B]."""
        return self.lengths - self.prompt_lengths

    def last(self, distance: jax.Array | int) -> jax.Array:
        """The tokens at `distance` (1 is the newest; an int, or int [M]) from the ends: int32 [B] or [B, M].

        -1 where the text is shorter.
        """
        place = self.lengths.reshape(-1, *(1,) * np.ndim(distance)) - distance
        found = jnp.take_along_axis(self.tokens, jnp.maximum(place, 0).reshape(len(place), -1), axis=1)
        return jnp.where(place >= 0, found.reshape(place.shape), -1)


def sequence_bias(logits: jax.Array, phrases: jax.Array, bias: jax.Array, history: History) -> jax.Array:
    """Adds `bias` [N] to the logit of the last token of each of `phrases` [N, M] that the text is about to complete."""
    completions = _completions(phrases, history)
    return finite(logits + _scatter(jnp.zeros_like(logits), completions).add(bias, mode="drop"))


def repetition_penalty(logits: jax.Array, penalty: jax.Array | float, history: History) -> jax.Array:
    """Divides positive logits of tokens in the text, prompt included, by `penalty`; multiplies negative ones by it.

    Keskar et al. (2019).
    """
    own, penalty = jnp.take_along_axis(logits, history.tokens, axis=1, mode="clip"), of_rows(penalty)
    penalized = finite(jnp.where(own < 0, own * penalty, own / penalty))
    return _scatter(logits, _written(history)).set(penalized, mode="drop")


def presence_and_frequency_penalty(
    logits: jax.Array, presence: jax.Array | float, frequency: jax.Array | float, history: History
) -> jax.Array:
    """Takes `presence` from tokens generated so far, and `frequency` for each time; the prompt does not count.

    As OpenAI's API and vLLM define them.
    """
    new = _written(history, start=history.prompt_lengths)
    counts = _scatter(jnp.zeros_like(logits), new).add(1.0, mode="drop")
    return finite(logits - of_rows(frequency) * counts - of_rows(presence) * (counts > 0))


def no_repeat_ngram(logits: jax.Array, n: jax.Array | int, history: History) -> jax.Array:
    """Bans the tokens that would complete n tokens already in the text, prompt included; 0 bans nothing."""
    written, n = _written(history, start=n - 1), of_rows(n)  # [B, S]: each as the last of n

    def agree(distance: jax.Array, same: jax.Array) -> jax.Array:
        equal = jnp.roll(history.tokens, distance, axis=1) == history.last(distance)[:, None]
        return same & (equal | (distance >= n))

    S = written.shape[1]
    same = jax.lax.fori_loop(1, jnp.clip(n.max(), 1, S), agree, jnp.ones(written.shape, bool))
    return ban(logits, jnp.where(same & (n > 0), written, -1))


def bad_words(logits: jax.Array, phrases: jax.Array, history: History) -> jax.Array:
    """Bans the last token of each of `phrases` [N, M] that the text is about to complete."""
    return ban(logits, _completions(phrases, history))


def min_new_tokens(logits: jax.Array, least: jax.Array | int, end_tokens: jax.Array, history: History) -> jax.Array:
    """Bans the `end_tokens` (int [E] or [B, E], -1 is none) in rows with fewer than `least` new tokens."""
    return ban(logits, jnp.where(history.new[:, None] < of_rows(least), end_tokens, -1))


def exponential_decay(
    logits: jax.Array, start: jax.Array | int, factor: jax.Array | float, end_tokens: jax.Array, history: History
) -> jax.Array:
    """Adds |logit| * (factor ** n - 1) to the `end_tokens` (int [E] or [B, E], -1 is none) of rows n past `start`.

    `exponential_decay_length_penalty` of transformers. What is banned stays so.
    """
    past = jnp.maximum(history.new - start, 0)[:, None]
    end_tokens = jnp.broadcast_to(end_tokens, (len(logits), end_tokens.shape[-1]))
    own = jnp.take_along_axis(logits, end_tokens, axis=1, mode="clip")  # [B, E]
    growth = jnp.minimum(of_rows(factor).astype(jnp.float32) ** past, -LOWEST) - 1
    raised = jnp.where(own > LOWEST, finite(own + jnp.abs(own) * growth), own)
    return _scatter(logits, end_tokens).set(raised, mode="drop")


def forced(logits: jax.Array, token: jax.Array | int, rows: jax.Array) -> jax.Array:
    """Bans all but `token` in `rows`, bool [B]."""
    only = jnp.where(jnp.arange(logits.shape[1]) == of_rows(token), 0.0, LOWEST)
    return jnp.where(rows[:, None], only, logits)


def ban(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Lowers `tokens` of each row (int [B, any] or, for all rows, [any]; -1 is none) to `LOWEST`."""
    return _scatter(logits, jnp.broadcast_to(tokens, (len(logits), tokens.shape[-1]))).set(LOWEST, mode="drop")


def finite(logits: jax.Array) -> jax.Array:
    """Logits within the finite numbers."""
    return jnp.clip(logits, LOWEST, -LOWEST)


def of_rows(setting: jax.Array | float) -> jax.Array:
    """A setting, [] or [B], as it broadcasts with [B, V]: [1, 1] or [B, 1]."""
    return jnp.reshape(setting, (-1, 1))


def _written(history: History, start: jax.Array | int = 0) -> jax.Array:
    """The tokens at `start` (an int, or int [B]) and after, int32 [B, S]; -1 in the other places."""
    place = jnp.arange(history.tokens.shape[1])
    inside = (place >= of_rows(start)) & (place < history.lengths[:, None])
    return jnp.where(inside, history.tokens, -1)


def _completions(phrases: jax.Array, history: History) -> jax.Array:
    """The last token of each phrase whose others end the text, int32 [B, N]; -1 for the phrases that do not follow.

    `phrases` int32 [N, M] or [B, N, M] are aligned on the right, -1 fills the left, and a row of -1 is none.
    """
    before = phrases[..., :-1]
    suffix = history.last(jnp.arange(before.shape[-1], 0, -1))  # [B, M - 1]
    follows = ((suffix[:, None] == before) | (before < 0)).all(-1)
    return jnp.where(follows, phrases[..., -1], -1)


def _scatter(logits: jax.Array, tokens: jax.Array):
    """What `.set` and `.add` (with mode="drop") write at `tokens` of each row, int [B, any]; -1 is none."""
    B, V = logits.shape
    return jnp.asarray(logits).at[jnp.arange(B)[:, None], jnp.where(tokens < 0, V, tokens)]

"""The length of lines: a control that counts the characters since the last line break.

Axes as in logits.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.generation.logits import LOWEST, History, finite
from gpt2_jax.tokenizer import Tokenizer


@functools.lru_cache(maxsize=8)
def line_table(tokenizer: Tokenizer, vocab_size: int) -> np.ndarray:
    """What each token does to a line: int32 [2, vocab_size], its characters, and those after its last line break.

    The second is -1 for tokens without a line break. A character in several tokens counts in the first.

    Raises:
      InputError: no token has a line break.
    """
    table = np.array([[0], [-1]], np.int32).repeat(vocab_size, axis=1)
    for token in range(min(vocab_size, len(tokenizer))):
        spelling = tokenizer.spelling(token)
        _, broken, after = spelling.rpartition(b"\n")
        table[0, token] = _characters(spelling)
        if broken:
            table[1, token] = _characters(after)
    if (table[1] < 0).all():
        raise InputError("line_length needs a token with a line break, and this model's tokenizer has none; remove it")
    return table


def _characters(spelling: bytes) -> int:
    return sum(byte & 0xC0 != 0x80 for byte in spelling)  # UTF-8's bytes after the first do not count


def line_length(
    logits: jax.Array, target: jax.Array | float, strength: jax.Array | float, table: jax.Array, history: History
) -> jax.Array:
    """Adds `strength * (characters of the line - target)` to the logits of line breaks: too short a line goes on.

    A line that has only begun is left alone, so that empty lines come as the model wants them. What is banned stays so.

    Args:
      target, strength: in characters, and nats a character.
      table: of `line_table`, [2, V].
    """
    characters = characters_of_line(table, history)
    bias = jnp.where(characters > 0, strength * (characters - target), 0.0)
    raised = finite(logits + bias[:, None])
    return jnp.where((table[1] >= 0) & (logits > LOWEST), raised, logits)


def characters_of_line(table: jax.Array, history: History) -> jax.Array:
    """Characters since the last line break of each row, int32 [B]; the prompt's count, too."""
    place = jnp.arange(history.tokens.shape[1])
    written = place < history.lengths[:, None]
    size, after = jnp.take(table, history.tokens, axis=1, mode="clip")  # [B, S]
    last = jnp.where(written & (after >= 0), place, -1).max(1, keepdims=True)
    rest = jnp.take_along_axis(after, jnp.maximum(last, 0), axis=1)[:, 0]
    return jnp.where(last[:, 0] >= 0, rest, 0) + jnp.where(written & (place > last), size, 0).sum(1)

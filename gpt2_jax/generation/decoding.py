"""What every way of generating shares: a prefill that fills the cache with the prompts, and the step of one token.

Prompts of different lengths are padded on the right to P slots of the cache; the n-th new token of every row goes to
slot P + n, while positions follow each row's own length. Axes as in model.py; P prompt slots, N slots for new tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp

from gpt2_jax.attention import KVCache
from gpt2_jax.model import GPT2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding:
    """What the model remembers of the rows; carried by a loop or donated, its cache is written in place."""

    lengths: jax.Array  # int32 [B]: of the prompts
    count: jax.Array  # int32 []: new tokens fed to the model so far
    cache: tuple[KVCache, ...]  # one a layer, of P + N slots
    prompt_slots: int = dataclasses.field(metadata={"static": True})  # P

    def select(self, rows: jax.Array) -> "Decoding":
        """The memory of `rows` (int [B'], repeats allowed)."""
        cache = tuple(layer.select(rows, len(self.lengths)) for layer in self.cache)
        return dataclasses.replace(self, lengths=self.lengths[rows], cache=cache)

    def reorder(self, rows: jax.Array) -> "Decoding":
        """`select` of rows (int [B]) with the same prompt as the ones they replace, as a beam search moves its beams.

        Only the new tokens move: with a long prompt, moving all takes as long as the step itself.
        """
        cache = tuple(layer.reorder(rows, self.prompt_slots) for layer in self.cache)
        return dataclasses.replace(self, cache=cache)


def prefill(model: GPT2, prompts: jax.Array, lengths: jax.Array, capacity: int) -> tuple[jax.Array, Decoding]:
    """The prompts through the model once.

    Args:
      model: an unstacked model (`gpt2_jax.model.unstack`).
      prompts: int32 [B, P], padded on the right with any ids.
      lengths: int32 [B], each at least 1.
      capacity: new tokens that the cache shall have room for, N.

    Returns:
      (states [B, P, C], of which those past a row's length mean nothing; the memory of the prompts).
    """
    P = prompts.shape[1]
    # A row's padding comes after its prompt, so causality alone hides it from every position that matters.
    x, cache = model.prefill(prompts, P + capacity)
    return x, Decoding(lengths=lengths, count=jnp.zeros((), jnp.int32), cache=cache, prompt_slots=P)


def last_state(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """states [B, P, C] -> those of each row's last prompt token [B, C]."""
    return jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]


def step(model: GPT2, tokens: jax.Array, decoding: Decoding) -> tuple[jax.Array, Decoding]:
    """One new token a row, int32 [B] -> (its state [B, C], whose logits `model.head` gives; the memory with it)."""
    P, count = decoding.prompt_slots, decoding.count
    slot = jnp.arange(decoding.cache[0].slots)
    mask = (slot < decoding.lengths[:, None]) | ((slot >= P) & (slot <= P + count))  # [B, S]
    # Rows that are done go on beside the others and may run out of positions; theirs no longer matter.
    positions = jnp.minimum(decoding.lengths + count, model.config.n_positions - 1)[:, None]
    x, cache = model.decode(tokens[:, None], positions, mask[:, None], decoding.cache, P + count)
    return x[:, 0], dataclasses.replace(decoding, count=count + 1, cache=cache)

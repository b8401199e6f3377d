"""Log-probabilities of a prompt's own tokens, each after those before it.

Axes as in model.py; P slots, n alternatives.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gpt2_jax.generation.sampler import bucket
from gpt2_jax.model import GPT2
from gpt2_jax.serving.stream import Score

POSITIONS = 16  # whose logits are there at a time


def prompt_scores(model: GPT2, ids: Sequence[int], alternatives: int) -> list[Score | None]:
    """Of each token; None for the first, before which there is nothing. A prompt of another bucket compiles anew."""
    tokens = np.zeros((1, bucket(len(ids), model.config.n_positions)), np.int32)
    tokens[0, : len(ids)] = ids
    n = min(alternatives, model.config.vocab_size)
    chosen, top, top_tokens = map(np.asarray, _scores(model, tokens, alternatives=n))
    return [None, *(Score(float(chosen[i]), top[i], top_tokens[i]) for i in range(len(ids) - 1))]


@functools.partial(jax.jit, static_argnames="alternatives")
def _scores(model: GPT2, tokens: jax.Array, *, alternatives: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the token after each position: float32 [P], float32 [P, n], int32 [P, n]; the last means nothing."""
    x, _ = model.prefill(tokens, tokens.shape[1])

    def of_position(state_and_next: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        state, token = state_and_next
        log_p = jax.nn.log_softmax(model.head(state[None])[0])
        return log_p[token], *jax.lax.top_k(log_p, alternatives)

    return jax.lax.map(of_position, (x[0], jnp.roll(tokens[0], -1)), batch_size=POSITIONS)

"""Log-probabilities of a prompt's own tokens, each after those before it."""

from collections.abc import Sequence

from gpt2_jax.analysis.probabilities import given_those_before
from gpt2_jax.model import GPT2
from gpt2_jax.serving.stream import Score


def prompt_scores(model: GPT2, ids: Sequence[int], alternatives: int) -> list[Score | None]:
    """Of each token; None for the first, before which there is nothing. A prompt of another bucket compiles anew."""
    n = min(alternatives, model.config.vocab_size)
    chosen, _, _, top_tokens, top = given_those_before(model, ids, n)
    return [None, *map(Score, chosen.tolist(), top, top_tokens)]

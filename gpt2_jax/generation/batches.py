"""Many texts in batches of one size, which share their compiled programs."""

from collections.abc import Iterator, Sequence
from typing import Any

from gpt2_jax.generation.request import Prompt
from gpt2_jax.language_model import Generation, LanguageModel


def generate(
    lm: LanguageModel, rows: Sequence[tuple[Prompt, int]], batch_size: int, **options: Any
) -> Iterator[Generation]:
    """Continues each (prompt, seed), in order; each gives what it gives alone.

    The last batch is filled up with copies of its last row: another number of rows would be another program.

    Args:
      lm: the model.
      rows: prompts and seeds.
      batch_size: rows that run together, at least 1.
      **options: others of `lm.generate`.
    """
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        prompts, seeds = zip(*batch, *batch[-1:] * (batch_size - len(batch)))
        yield from lm.generate(prompts, seed=seeds, **options)[: len(batch)]

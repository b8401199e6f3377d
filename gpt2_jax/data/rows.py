"""Which rows of a batch a process reads: those of which its devices hold parts."""

import dataclasses

import numpy as np

from gpt2_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of every batch, whatever its size.

    Processes have the same ones where the mesh cuts what is within a sequence, or a model, between them.

    Attributes:
      parts: of a batch, equal and consecutive, each of which is held whole or not at all.
      held: the parts that this process reads, ascending.
      first: those that no process before this one reads: what is to be done once is done with them.
    """

    parts: int = 1
    held: tuple[int, ...] = (0,)
    first: tuple[int, ...] = (0,)

    @classmethod
    def part(cls, index: int, parts: int) -> "Rows":
        """One part that is read by one process alone."""
        return cls(parts, (index,), (index,))

    def of(self, batch_size: int) -> np.ndarray:
        """Their numbers in a batch of that size, ascending.

        Raises:
          InputError: a batch that has no such parts.
        """
        if batch_size % self.parts:
            raise InputError(
                f"batch_size is {batch_size}; it must be a multiple of {self.parts}, the parts of a batch that the "
                "processes share: change --config.training.batch_size or --config.evaluation.batch_size"
            )
        size = batch_size // self.parts
        return (np.array(self.held)[:, None] * size + np.arange(size)).reshape(-1)


ALL = Rows()

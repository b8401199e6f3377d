"""Computations that pause, so that whoever runs them may do something else in between, or give them up."""

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")
Pausing = Generator[None, None, T]  # yields None at each pause, and returns what it was for


def finish(computation: Pausing[T]) -> T:
    """What the computation returns at its end."""
    while True:
        try:
            next(computation)
        except StopIteration as end:
            return end.value

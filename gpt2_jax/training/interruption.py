"""Ctrl-C and SIGTERM: finish the step, save, and stop."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm


class Stop:
    """Which signal has asked the run to stop, if one has."""

    signal: int | None = None


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM let the running step finish and be saved; a second one stops at once."""
    stop = Stop()

    def ask(number: int, _frame: Any) -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = number
        tqdm.write("stopping after this step and saving; once more stops at once, without saving")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

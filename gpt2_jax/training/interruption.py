"""What ends a run early: ctrl-C, SIGTERM and SIGUSR1 finish the step and save; so does a source of text that is gone.

What one process of several learns, all have to act on at the same step, or the others wait for it forever.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the last is what many a `sbatch --signal` asks for
DEAF = 5.0  # seconds that the main thread may take for a second signal; it hears none while it waits in C++
SOURCE_GONE = 255  # beside the numbers of signals


class Stop:
    """Which signal has asked the run to stop, if one has."""

    signal: int | None = None
    _signalled = False

    def ask(self, number: int, _frame: Any = None) -> None:
        """Handles a signal: the first stops after the step, the second at once."""
        if self._signalled:
            raise KeyboardInterrupt(number)
        self._signalled = True
        if self.signal is None:
            self.notice(number, "once more stops at once, without saving")

    def notice(self, number: int, why: str) -> None:
        """Stops after the step as if by a signal, which may still come."""
        self.signal = number
        if jax.process_index() == 0:
            tqdm.write(f"stopping after this step and saving; {why}")


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """`SIGNALS` let the running step finish and be saved; a second one stops at once."""
    stop = Stop()
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    hears, tells = os.pipe()
    os.set_blocking(tells, False)
    wakes = signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second, args=(hears,), name="signals", daemon=True).start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(wakes)
        os.close(tells)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_at_second(hears: int) -> None:
    """Ends the process at a second signal, if the main thread does not; Python writes their numbers to that pipe."""
    count = 0
    while byte := os.read(hears, 1):
        count += byte[0] in SIGNALS
        if count == 2 and not select.select([hears], [], [], DEAF)[0]:
            os._exit(128 + byte[0])
    os.close(hears)


class Agreement:
    """The step after which all processes of a run stop: the least that one of them wants.

    What they want before step n they know of each other before step n + 1, by a maximum over all devices that runs
    before step n does: nobody waits for it.

    Args:
      mesh: all devices of the run.
      wants: `wants(step, notice)` is this process's own (last step, cause), where `notice` steps after `step` are done
        in any case; the cause is 0, a signal, or SOURCE_GONE.

    Attributes:
      cause: of the end, as far as it is known.
    """

    def __init__(self, mesh: Mesh, wants: Callable[[int, int], tuple[int, int]]):
        self.cause = 0
        self._mesh, self._wants = mesh, wants
        self._told: jax.Array | None = None
        self._most = jax.jit(lambda wanted: wanted.max(0), out_shardings=NamedSharding(mesh, P()))

    def last_step(self, step: int) -> int:
        """The last step of the run, as far as it is known when `step` are done; all processes call it alike."""
        if jax.process_count() == 1:
            last, self.cause = self._wants(step, 0)
            return last
        if self._told is None:  # the first time: nothing runs yet
            self._told = self._tell(step)
        least, self.cause = np.asarray(self._told).tolist()
        if step < -least:
            self._told = self._tell(step)
        return -least

    def _tell(self, step: int) -> jax.Array:
        last, cause = self._wants(step, 1)
        own = np.array([[-last, cause]], np.int32)
        everyone = NamedSharding(self._mesh, P(self._mesh.axis_names))
        return self._most(jax.make_array_from_callback((self._mesh.size, 2), everyone, lambda _: own))

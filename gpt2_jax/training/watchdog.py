"""Ends a run that would wait for ever: one that stands still, or whose other processes are gone.

Whatever it is that the main thread waits for, in Python or in C++, these threads go on. They say what was waited for,
and by whom, and end the process with `TEMPORARY`: the same command goes on from the last checkpoint.
"""

import contextlib
import faulthandler
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from gpt2_jax.errors import InputError, one_line
from gpt2_jax.training.accounting import Clock
from gpt2_jax.training.device_options import DistributedConfig
from gpt2_jax.training.peers import LATE, TEMPORARY, End, Peers, Sign, are_several, end_of_lost

TICK = 0.5  # seconds
PATIENCE = 10.0  # seconds that the others of a process that failed have to end by themselves; it waits for them longer
# What a process does, and where to look if it does that for ever; those that only wait for others come last.
DOING = {
    "data_wait": ("waits for data", "see whether the source of the text and its disk still answer"),
    "checkpoint": ("saves or restores a checkpoint", "see whether the disk of the workdir still answers"),
    "preparing": ("prepares the data", "see whether the source of the text and its disk still answer"),
    "evaluation": ("evaluates", "the stacks of its threads say where"),
    "compile": ("compiles", "the stacks of its threads say where"),
    "other": ("is between two steps", "the stacks of its threads say where"),
    "dispatch": ("hands a step to its devices", "see whether all devices and their network still work"),
    "device_wait": ("waits for its devices", "see whether all devices and their network still work"),
}
# Of messages of devices that could not reach those of another process, rather than ran out of memory or the like.
CONNECTION = re.compile("Gloo|NCCL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|[Cc]onnection|[Ss]ocket|heartbeat")
STAYS = "the last checkpoint stays, and the same command goes on from there"


class Still:
    """For how long a value has not changed, seen every `TICK`; while this process was stopped does not count."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.seconds = 0.0
        self._clock, self._last, self._value = clock, clock(), None

    def see(self, value: Any) -> float:
        """Seconds for which this value has been the same."""
        now = self._clock()
        passed, self._last = min(now - self._last, 4 * TICK), now
        self.seconds = self.seconds + passed if value == self._value else 0.0
        self._value = value
        return self.seconds


class Watchdog:
    """Watches a run from outside of its main thread; a context manager.

    Args:
      config: after how many seconds a run stands still, or a process is lost.
      log: gets what is said at the end, as stderr does.
    """

    def __init__(self, config: DistributedConfig, log: Path):
        self._config, self._log = config, log
        self._peers = Peers(config.heartbeat_seconds) if are_several() else None
        self._clock: Clock | None = None
        self._still, self._unanswered = Still(), Still()
        self._closed, self._leaving = threading.Event(), threading.Lock()
        self._judged: BaseException | None = None

    def __enter__(self) -> "Watchdog":
        works = [self._watch] + [self._listen] * (self._peers is not None)
        self._threads = [threading.Thread(target=work, name="watchdog", daemon=True) for work in works]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if self._peers is not None and error is not None:
            self._failed(error)
        self._closed.set()
        for thread in self._threads:
            thread.join(5.0)  # it may be talking to a process 0 that is gone

    @contextlib.contextmanager
    def over(self, clock: Clock) -> Iterator[None]:
        """Watches what `clock` says is done. What fails because of another process ends this one here."""
        self._clock = clock
        try:
            yield
        except Exception as error:
            if self._peers is not None and of_devices(error):
                self._failed(error)  # before anything waits for the others to close a checkpoint
            raise
        finally:
            self._clock = None

    def _watch(self) -> None:
        """Talks to nobody, so nothing holds it up."""
        while not self._closed.wait(TICK):
            clock = self._clock  # read once: the main thread takes it away at the end
            self._still.see(clock and clock.signs)
            if self._stands_still():
                if self._peers is None or self._stands_still(since=6 * self._peers.interval):  # or nobody answers
                    self._leave(self._end_of_stall())
                else:
                    self._peers.curious = True
            if self._peers is not None:
                silent = self._unanswered.see(self._peers.answers)
                if silent > self._config.heartbeat_seconds:
                    what = "killed, stopped, or its machine or network is gone"
                    self._leave(End(TEMPORARY, f"process 0 has not answered for {silent:.0f} seconds: {what}"))

    def _listen(self) -> None:
        """Talks to the other processes, by way of process 0."""
        while not self._closed.is_set():
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 does not answer; `_watch` counts how long
                self._peers.tell(*self._doing())
                self._peers.hear()
                if self._stands_still(since=3 * self._peers.interval):  # the others have said what they do
                    self._peers.declare(self._end_of_stall())
            if (end := self._peers.end) is not None and not self._closed.wait(end.patience):
                self._leave(end)
            self._closed.wait(self._peers.interval)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._peers.tell("")

    def _doing(self) -> tuple[str, int]:
        """What is done, and at which step."""
        clock = self._clock
        return (clock.activity, clock.step) if clock else ("preparing", 0)

    def _stands_still(self, since: float = 0.0) -> bool:
        limit = self._config.stall_seconds
        return self._clock is not None and 0 < limit < self._still.seconds - since

    def _end_of_stall(self) -> End:
        """Says who waits for what, those that only wait for others last."""
        own = Sign(0.0, 0, socket.gethostname(), *self._doing())
        if self._peers is None:
            return self._stall(f"the run {DOING[own.doing][0]}", own)
        missed, signs = self._peers.silent(), self._peers.signs() | {self._peers.index: own}
        order = lambda i: (i not in missed, list(DOING).index(signs[i].doing), i)
        first, *_ = ordered = sorted(signs, key=order)
        named = [
            f"process {i} on {signs[i].host} {'is not heard of' if i in missed else DOING[signs[i].doing][0]}"
            for i in ordered[:8]
        ]
        more = [f"and {len(ordered) - 8} more"] * (len(ordered) > 8)
        return self._stall("; ".join(named + more), signs[first])

    def _stall(self, who: str, sign: Sign) -> End:
        seconds = self._config.stall_seconds
        return End(
            TEMPORARY,
            f"no progress for {seconds} seconds (distributed.stall_seconds) after step {sign.step}: {who}; "
            f"{DOING[sign.doing][1]}",
            stacks=True,
        )

    def _failed(self, error: BaseException) -> None:
        """Tells the others of an error of this process; ends it if the error is only that another one is gone."""
        if error is self._judged:
            return
        self._judged = error
        who = f"process {self._peers.index}"
        if not of_devices(error):
            code = exit_code(error)
            self._peers.declare(End(code, f"{who} ended: {one_line(error) or type(error).__name__}", patience=PATIENCE))
            return
        self._peers.curious = True
        until = time.monotonic() + 2 * LATE * self._peers.interval
        while self._peers.end is None and time.monotonic() < until:
            time.sleep(TICK / 5)
        text = one_line(error)[:400]
        if lost := self._peers.silent():
            end = end_of_lost(lost, LATE * self._peers.interval)
        elif CONNECTION.search(text):
            end = End(TEMPORARY, f"{who} lost the connection to another process: {text}")
        else:
            end = End(1, f"{who} ended: {text}", patience=PATIENCE)
        if self._peers.end is None:
            self._peers.declare(end)
        if self._peers.end is not end or end.code == TEMPORARY:  # else its own traceback says more
            self._leave(self._peers.end or end)

    def _leave(self, end: End) -> None:
        """Ends this process, whatever its main thread does."""
        with self._leaving:  # for ever
            prefix = f"process {self._peers.index}: " if self._peers is not None else ""
            advice = f"; {STAYS}" if end.code == TEMPORARY else ""
            text = f"{prefix}error: {end.message}{advice}"

            def say() -> None:
                for file in (sys.__stderr__, self._log.open("a", encoding="utf-8")):
                    if end.stacks:
                        faulthandler.dump_traceback(file)
                    print(text, file=file, flush=True)

            saying = threading.Thread(target=say, daemon=True)  # it may be the disk that does not answer
            saying.start()
            saying.join(PATIENCE / 2)
            if self._peers is not None and self._peers.index == 0:
                time.sleep(3 * self._peers.interval)  # the others hear of it from here
            os._exit(end.code)


def of_devices(error: BaseException) -> bool:
    """Whether it came from the devices, which fail where those of another process do not answer."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return True
    # What fails while it is handed to the devices comes as a ValueError.
    return type(error) in (ValueError, RuntimeError) and CONNECTION.search(str(error)) is not None


def exit_code(error: BaseException) -> int:
    """With what a script ends after an error."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    return 2 if isinstance(error, (InputError, OSError)) else 1

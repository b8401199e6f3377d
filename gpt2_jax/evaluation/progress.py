"""The line that tells how far an evaluation is: written over on a terminal, and now and then a new one in logs."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

ON_TERMINAL, IN_LOG = 0.5, 30.0  # seconds between two


class Progress:
    """To be told how much is done; within a `with`, after which a terminal's line is wiped."""

    def __init__(self, title: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self.title = title
        self.stream = sys.stderr if stream is None else stream
        self.clock = clock
        self.terminal = self.stream.isatty()
        self.told = self.began = clock()
        self.first: tuple[str, int] | None = None  # of what, and how much was done at first
        self.width = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        if self.width:
            print(f"\r{'':{self.width}}\r", end="", file=self.stream, flush=True)

    def __call__(self, done: int, total: int, what: str) -> None:
        now = self.clock()
        if self.first is None or self.first[0] != what:
            self.first, self.began = (what, done), now  # not from 0: it may go on, and the first compiles
        if now - self.told < (ON_TERMINAL if self.terminal else IN_LOG):
            return
        self.told = now
        line = f"{self.title}: {done:,} of {total:,} {what}"
        if done > self.first[1]:
            speed = (done - self.first[1]) / (now - self.began)
            line += f", {speed:,.4g} a second, {_duration((total - done) / speed)} left"
        if self.terminal:
            print(f"\r{line:{self.width}}", end="", file=self.stream, flush=True)
            self.width = len(line)
        else:
            print(line, file=self.stream, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"

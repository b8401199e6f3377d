"""Where a run's time goes: seconds by activity, compilation among them, and the line at the end that sums them up."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

# What the loop says it does; the time of JAX's compiler is taken out of each, and what is left over is "other".
ACTIVITIES = ("dispatch", "device_wait", "data_wait", "evaluation", "checkpoint", "compile", "other")
TRAINING = ("dispatch", "device_wait")
COMPILE_SPANS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",  # reading the persistent cache instead is in it
)
ALIVE = "/gpt2_jax/alive"  # an event of work that is one activity for long, and goes on
CACHE_ASKED = "/jax/compilation_cache/compile_requests_use_cache"
CACHE_HIT = "/jax/compilation_cache/cache_hits"


class Clock:
    """The wall time of the thread that made it, each moment counted for one activity; a context manager.

    It is the host's time: while the host waits for data, the device goes on with the step before. So "data_wait" is the
    most that data can have cost, and "dispatch" and "device_wait" together are the least that training took.

    Args:
      say: is given a line when a training step was compiled.

    Attributes:
      seconds: spent so far, of all `ACTIVITIES`, up to the last change of activity.
      step: that was dispatched last.
      signs: of progress, counted: changes of activity, and events of JAX and `ALIVE` in its thread.
    """

    def __init__(self, say: Callable[[str], None] = lambda _: None):
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self.step = self.signs = 0
        self._say = say
        self._activities = ["other"]
        self._since = time.perf_counter()
        self._thread = threading.get_ident()
        self._spans: list[tuple[float, float]] = []  # when something was compiled
        self._asked = self._hits = 0

    def __enter__(self) -> "Clock":
        jax.monitoring.register_event_time_span_listener(self._compiled)
        jax.monitoring.register_event_listener(self._event)
        return self

    def __exit__(self, *_: Any) -> None:
        jax.monitoring.unregister_event_time_span_listener(self._compiled)
        jax.monitoring.unregister_event_listener(self._event)

    @property
    def activity(self) -> str:
        """What is being done."""
        return self._activities[-1]

    @contextlib.contextmanager
    def on(self, activity: str) -> Iterator[None]:
        """Counts the time within for `activity`, one of `ACTIVITIES`, and no more for that around it."""
        self._count()
        self._activities.append(activity)
        try:
            yield
        finally:
            self._count()
            self._activities.pop()

    @contextlib.contextmanager
    def dispatching(self, step: int) -> Iterator[None]:
        """Around a call of the training step, `step` its number in traces; says what was compiled for it, if it was."""
        self.step = step
        before, asked, hits = self.seconds["compile"], self._asked, self._hits
        with self.on("dispatch"), jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        if (seconds := self.seconds["compile"] - before) > 0:
            asked, hits = self._asked - asked, self._hits - hits
            cached = " (from the persistent cache)" if asked and asked == hits else ""
            self._say(f"step {step:>6}  training step traced and compiled in {seconds:.1f} s{cached}")

    def shares(self) -> dict[str, float]:
        """{activity: its part of the time since this clock was made}, adding up to 1; "training" is `TRAINING`."""
        self._count()
        total = sum(self.seconds.values())
        parts = {"training": sum(self.seconds[name] for name in TRAINING)}
        parts |= {name: self.seconds[name] for name in ACTIVITIES if name not in TRAINING}
        return {name: part / total for name, part in parts.items()}

    def goodput(self) -> str:
        """One line: the part of the time spent on training steps, and the other parts; they sum to 100 %."""
        shares = self.shares()
        texts = [f"{name.replace('_', ' ')} {tenths / 10:.1f} %" for name, tenths in zip(shares, in_tenths(shares))]
        return f"goodput: {', '.join(texts)} of {sum(self.seconds.values()):,.1f} s"

    def _count(self) -> None:
        now = time.perf_counter()
        self.seconds[self._activities[-1]] += now - self._since
        self._since = now
        self.signs += 1

    def _compiled(self, event: str, start: float, end: float, **_: Any) -> None:
        """Moves a span of compiling from the activity that it was part of to "compile"."""
        if event not in COMPILE_SPANS or threading.get_ident() != self._thread:
            return
        known = 0.0  # of functions traced while this one was: their spans lie in this one and have been counted
        while self._spans and self._spans[-1][0] >= start:
            known += self._spans.pop()[1]
        self._spans.append((start, end - start))
        self._count()
        activity = self._activities[-1]
        seconds = min(max(0.0, end - start - known), self.seconds[activity])  # JAX reads another clock
        self.seconds["compile"] += seconds
        self.seconds[activity] -= seconds

    def _event(self, event: str, **_: Any) -> None:
        self.signs += threading.get_ident() == self._thread
        self._asked += event == CACHE_ASKED
        self._hits += event == CACHE_HIT


def in_tenths(shares: dict[str, float]) -> list[int]:
    """Shares of 1 as tenths of a percent that add up to 1000: those with the largest remainders are rounded up."""
    exact = [1000 * share for share in shares.values()]
    tenths = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: tenths[i] - exact[i])
    for i in by_remainder[: 1000 - sum(tenths)]:
        tenths[i] += 1
    return tenths

"""One text while it is written, between the thread of the device and whoever reads it."""

import asyncio
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple

import numpy as np

from gpt2_jax.generation import sampler, stopping
from gpt2_jax.generation.request import Request
from gpt2_jax.language_model import Generation, LanguageModel


class Busy(RuntimeError):
    """As many requests wait as may: try again later."""


class Cancelled(RuntimeError):
    """The text was cancelled before its end."""


class Closed(RuntimeError):
    """The batcher was closed before the text came to its end, or before it was asked for."""


class Score(NamedTuple):
    """Log-probabilities under the model itself of a token, and of the most probable ones in its place."""

    chosen: float
    top: np.ndarray  # float32 [n]
    top_tokens: np.ndarray  # int32 [n]


@dataclasses.dataclass(frozen=True)
class Piece:
    """Text that is final, and the new tokens that have come since the piece before, which spell it and what waits."""

    text: str
    tokens: list[int]
    scores: list[Score]  # of the tokens; empty unless asked for


class Stream:
    """A text on its way. Iterating gives its pieces of text once; any thread may do so, or `cancel`.

    Attributes:
      request: what was asked for, checked.
      number: which of the texts of its prompt this is.
      over: whether it has come to its end, or to a bad one.
    """

    def __init__(self, lm: LanguageModel, request: Request, number: int = 0):
        self.request, self.number = request, number
        self._lm = lm
        self._pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._wake: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._result: Generation | None = None
        self._error: BaseException | None = None

        self._tokens: list[int] = []
        self._scores: list[Score] = []
        self._shown = 0  # tokens that pieces have had
        self._waiting = ""  # text that may begin a stop string
        self._decoder = lm.tokenizer.stream_decoder()
        self._ends = frozenset(request.end_tokens.tolist())
        stops = request.options.stop_strings
        self._watch = stopping.Watch(stops, lm.tokenizer) if stops else None
        self._deadline: float | None = None

    @property
    def over(self) -> bool:
        """Whether the text has come to its end, or was cancelled."""
        return self._end.is_set()

    def __iter__(self) -> Iterator[str]:
        """Text as soon as it is final; joined, it is the completion. A cancelled text just ends.

        Raises:
          Exception: what ended the text early, after the pieces until then.
        """
        return (piece.text for piece in self.pieces() if piece.text)

    def pieces(self) -> Iterator[Piece]:
        """As iterating, with tokens and scores."""
        while (piece := self._pieces.get()) is not None:
            yield piece
        self._raise_unless_cancelled()

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """As `pieces`, without a thread that waits."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(ready.set)
        ready.set()  # for what came before
        while True:
            await ready.wait()
            ready.clear()
            with contextlib.suppress(queue.Empty):
                while (piece := self._pieces.get_nowait()) is not None:
                    yield piece
                break
        self._raise_unless_cancelled()

    def cancel(self) -> None:
        """Ends the text; its row is free within a step. After the end it does nothing."""
        self.fail(Cancelled("the text was cancelled"))

    def result(self, timeout: float | None = None) -> Generation:
        """The whole, as `lm.generate` returns it; waits for it, at most `timeout` seconds.

        Raises:
          Cancelled, Closed: it was ended early.
          TimeoutError: it has not ended yet.
          Exception: what else ended it early.
        """
        if not self._end.wait(timeout):
            raise TimeoutError(f"the text has not ended after {timeout} seconds")
        if self._error is not None:
            raise self._error
        return self._result

    def start(self) -> None:
        """The text begins to be written: its time runs."""
        if self.request.options.max_time is not None:
            self._deadline = time.monotonic() + self.request.options.max_time

    def add(self, token: int, score: Score | None) -> None:
        """The next token, by the thread of the device; at the end of the text, also its result."""
        self._tokens.append(token)
        if score is not None:
            self._scores.append(score)
        reason = "end_token" if token in self._ends else None
        if self._watch and self._watch.put(token):
            reason = "stop_string"
        elif reason is None and len(self._tokens) == self.request.max_new_tokens:
            reason = "length"
        elif reason is None and self._deadline is not None and time.monotonic() >= self._deadline:
            reason = "time"
        if token not in self._ends:
            self._waiting += self._decoder.put([token])
        if reason is not None:
            self.stop(reason)
            return
        final = len(self._waiting) - stopping.held_back(self._waiting, self.request.options.stop_strings)
        if final:
            self._show(self._waiting[:final])
        self._waiting = self._waiting[final:]

    def stop(self, reason: str) -> None:
        """The text ends with the tokens it has."""
        self._show(stopping.cut(self._waiting + self._decoder.end(), self.request.options.stop_strings))
        scores = None
        if self._scores:
            chosen, top, top_tokens = map(np.array, zip(*self._scores))
            scores = sampler.Scores(chosen=chosen.astype(np.float32), top=top, top_tokens=top_tokens)
        new = np.array(self._tokens, np.int32)
        self._finish(self._lm.result(self.request, self.request.prompts[0], new, reason, scores))

    def give(self, result: Generation) -> None:
        """The whole text at once."""
        self._tokens = result.tokens[len(self.request.prompts[0]) :].tolist()
        if result.logprobs is not None:
            self._scores = list(map(Score, result.logprobs.tolist(), result.top_logprobs, result.top_tokens))
        self._show(result.completion)
        self._finish(result)

    def fail(self, error: BaseException) -> None:
        """The text ends early, with this error for its reader."""
        self._finish(None, error)

    def _show(self, text: str) -> None:
        new = slice(self._shown, len(self._tokens))
        self._shown = len(self._tokens)
        self._put(Piece(text, self._tokens[new], self._scores[new]))

    def _finish(self, result: Generation | None, error: BaseException | None = None) -> None:
        with self._lock:
            if self.over:
                return
            self._result, self._error = result, error
            self._end.set()
        self._put(None)

    def _put(self, piece: Piece | None) -> None:
        self._pieces.put(piece)
        with contextlib.suppress(RuntimeError):  # the reader's event loop is closed: nobody reads
            self._wake()

    def _raise_unless_cancelled(self) -> None:
        if self._error is not None and not isinstance(self._error, Cancelled):
            raise self._error

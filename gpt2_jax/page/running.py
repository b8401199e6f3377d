"""What readers have the device do: texts that grow, and end when their reader says so or leaves."""

import contextlib
import functools
import inspect
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gradio as gr

from gpt2_jax.errors import InputError
from gpt2_jax.serving.stream import Busy, Cancelled, Stream

PAUSE = 0.06  # seconds between two looks of a page: faster than one reads
PATIENCE = 0.5  # seconds after which a page is told that nothing is new; one that has gone is noticed then
BUSY = "Many texts are being written just now, and more wait. Please try again in a moment."
FAILED = "That did not work; the server's log says why. Please try again."
log = logging.getLogger(__name__)


class Text:
    """A text that grows.

    Attributes:
      stream: where it comes from.
      completion: so far.
      generation: all of it, once it has ended by itself.
      error: why it failed, if it did.
    """

    def __init__(self, stream: Stream, news: threading.Event):
        self.stream, self.completion, self.generation, self.error = stream, "", None, None
        self.ended = False
        threading.Thread(target=self._follow, args=(news,), daemon=True).start()

    def _follow(self, news: threading.Event) -> None:
        try:
            for piece in self.stream:
                self.completion += piece
                news.set()
            self.generation = self.stream.result()
            self.completion = self.generation.completion
        except Cancelled:  # then it is what it is
            pass
        except Exception as error:
            self.error = error
        finally:
            self.ended = True
            news.set()


class Readers:
    """The streams of each session."""

    def __init__(self):
        self._streams: dict[str, list[Stream]] = defaultdict(list)
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def running(self, session: str, streams: Sequence[Stream]) -> Iterator[None]:
        """Knows of the streams meanwhile; afterwards none of them runs on."""
        with self._lock:
            self._streams[session].extend(streams)
        try:
            yield
        finally:
            for stream in streams:
                stream.cancel()
            with self._lock:
                left = [stream for stream in self._streams.pop(session, []) if stream not in streams]
                if left:
                    self._streams[session] = left

    def stop(self, session: str | None) -> None:
        """Cancels all that a session has running: the pages' texts end where they are."""
        with self._lock:
            streams = list(self._streams.get(session, ()))
        for stream in streams:
            stream.cancel()

    def follow(self, session: str, start: Sequence[Callable[[], Stream]]) -> Iterator[list[Text]]:
        """Starts streams, all or none, and yields their texts as they grow, a last time when all have ended.

        Raises:
          InputError, Busy: one could not be started.
        """
        streams = []
        try:
            streams.extend(begin() for begin in start)
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        news = threading.Event()
        with self.running(session, streams):
            texts = [Text(stream, news) for stream in streams]
            while not all(text.ended for text in texts):
                news.wait(PATIENCE)
                news.clear()
                yield texts
                time.sleep(PAUSE)
            for text in texts:
                if text.error is not None:
                    raise text.error
            yield texts


def told(function: Callable) -> Callable:
    """The function with its errors in a reader's words: bad input is explained, all else is for the log alone."""

    @functools.wraps(function)
    def call(*args: Any, **values: Any) -> Any:
        with _in_words():
            return function(*args, **values)

    @functools.wraps(function)
    def generate(*args: Any, **values: Any) -> Iterator:
        with _in_words():
            yield from function(*args, **values)

    return generate if inspect.isgeneratorfunction(function) else call


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    say = functools.partial(gr.Error, print_exception=False)
    try:
        yield
    except InputError as error:
        raise say(str(error)) from None
    except Busy:
        raise say(BUSY) from None
    except (gr.Error, GeneratorExit):
        raise
    except Exception:
        log.exception("a request of the page failed")
        raise say(FAILED) from None

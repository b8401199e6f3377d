"""Continuous batching: requests of many readers share the steps of one model, and each gets what it would get alone.

A thread owns the device. Each turn it reads a piece of a waiting prompt, adds a token to every row, and hands out the
tokens of the step before while the device computes. Rows join and leave between steps; the batch grows and shrinks by
powers of two, so that a single reader does not pay for many.
"""

import atexit
import collections
import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gpt2_jax.errors import InputError, check
from gpt2_jax.generation.lines import line_table
from gpt2_jax.generation.options import parse
from gpt2_jax.generation.pausing import Pausing
from gpt2_jax.generation.request import Prompt, Request, make_request
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.serving import rows as programs
from gpt2_jax.serving.jobs import Job, hand, write_alone
from gpt2_jax.serving.ring import Ring, device
from gpt2_jax.serving.rows import PHRASES, Drawn, Rows, Settings
from gpt2_jax.serving.stream import Busy, Closed, Score, Stream


@dataclasses.dataclass
class Seat:
    """A text that has a row."""

    stream: Stream
    length: int  # tokens, those of steps on their way included
    left: int  # tokens that are still to be drawn


class Batcher:
    """Writes many texts at once; `with Batcher(lm) as batcher: batcher.submit("def ").result()`.

    Every option of `lm.generate` is taken. Beams, contrastive search, `best_of`, guidance, contexts that slide and very
    long lists do not share steps: they run one after the other, between the steps of the rest.
    """

    def __init__(self, lm: LanguageModel, *, rows: int = 16, waiting: int = 64):
        """Starts the thread.

        Args:
          lm: the model.
          rows: texts that are written at a time, a power of two.
          waiting: texts that may wait for a row.
        """
        check(rows >= 1 and rows & (rows - 1) == 0, "rows", rows, "a power of two, such as 16")
        check(waiting >= 1, "waiting", waiting, "at least 1")
        self.lm, self.rows, self._limit = lm, rows, waiting
        self._suppressed = PHRASES + lm.config.vocab_size - len(lm.tokenizer)
        idle = make_request([""], parse({"temperature": 0, "max_new_tokens": 1}), lm.tokenizer, lm.config)
        self._idle = Settings.of(idle, 0, self._suppressed)
        try:
            self._line_table = jax.device_put(line_table(lm.tokenizer, lm.config.padded_vocab_size), device(lm.model))
        except InputError:  # no line breaks: then no request has a length of lines
            self._line_table = None

        self._changed = threading.Condition()
        self._closed = False  # this and the next three are shared by all threads, under `_changed`
        self._jobs: collections.deque[Job] = collections.deque()
        self._jobs_alone: collections.deque[Job] = collections.deque()
        self._calls: collections.deque[tuple[Callable[[], Any], concurrent.futures.Future]] = collections.deque()

        self._ring, self._rows = Ring(lm.model, rows), self._idle_rows()
        self._seats: list[Seat | None] = [None] * rows
        self._flying: tuple[Drawn, list[tuple[int, Stream]]] | None = None  # the step that the device is at
        self._alone: tuple[Job, Pausing[None]] | None = None
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # Python aborts where it ends while a thread is within JAX

    def submit(self, prompt: Prompt = "", **options: Any) -> Stream:
        """A text that continues the prompt; for the same seed the one of `lm.generate(prompt, **options)`.

        Raises:
          InputError: as `lm.generate`, and for several texts (see `submit_all`).
          Busy: as many texts wait already as may.
          Closed: after `close`.
        """
        texts = options.get("num_return_sequences", 1)
        check(texts == 1, "num_return_sequences", texts, "1 for one stream; submit_all gives one a text")
        return self.submit_all(prompt, **options)[0]

    def submit_all(self, prompt: Prompt = "", **options: Any) -> list[Stream]:
        """As `submit`, a stream for each of `num_return_sequences` texts."""
        settings, lm = parse(options), self.lm
        request = make_request([prompt], settings, lm.tokenizer, lm.config)
        texts = settings.num_return_sequences
        check(texts <= self._limit, "num_return_sequences", texts, f"at most {self._limit}, which may wait here")
        streams = [Stream(lm, request, number) for number in range(texts)]
        job = Job(request, list(streams))
        jobs = self._jobs if self._shares_steps(request) else self._jobs_alone
        with self._changed:
            if self._closed:
                raise Closed("the batcher is closed; make another")
            waiting = sum(not stream.over for job in self._every_job() for stream in job.waiting)
            if waiting + texts > self._limit:
                raise Busy(f"{waiting} texts wait already, and {self._limit} may; try again later")
            jobs.append(job)
            self._changed.notify_all()
        return streams

    def call(self, function: Callable[[], Any]) -> concurrent.futures.Future:
        """Runs another function that uses the device, between steps, in the thread that owns it."""
        future = concurrent.futures.Future()
        with self._changed:
            if self._closed:
                raise Closed("the batcher is closed; make another")
            self._calls.append((function, future))
            self._changed.notify_all()
        return future

    def warm(self) -> None:
        """Compiles all that requests which share steps will run; those alone compile what `lm.generate` would."""
        ring, rows = Ring(self.lm.model, self.rows), self._idle_rows()
        ring.warm(rows.history)
        while True:
            rows = self._put(rows, 0, self._idle, [0])
            states = ring.step(rows.history)
            history, _ = programs.draw(self.lm.model, rows.history, rows.settings, self._line_table, states)
            rows = programs.take(dataclasses.replace(rows, history=history), np.arange(self.rows, dtype=np.int32))
            if ring.batch == self.rows:
                break
            ring.grow()
        jax.block_until_ready(rows)

    def close(self) -> None:
        """Ends all texts that are not at their end, with `Closed`, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> "Batcher":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _shares_steps(self, request: Request) -> bool:
        options = request.options
        slides = len(request.prompts[0]) + request.max_new_tokens > self.lm.config.n_positions
        alone = options.search != "sample" or options.best_of is not None or request.negative or slides
        return not alone and Settings.of(request, 0, self._suppressed) is not None

    def _idle_rows(self) -> Rows:
        return jax.device_put(Rows.of(self._idle, self.rows, self.lm.config.n_positions), device(self.lm.model))

    def _every_job(self) -> list[Job]:
        return [*self._jobs, *self._jobs_alone]

    # What follows runs in the thread.

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._has_work())
                if self._closed:
                    break
            self._turn()
        self._end_all(Closed("the batcher was closed"))

    def _has_work(self) -> bool:
        return bool(self._calls or self._jobs or self._jobs_alone or self._alone or self._flying or any(self._seats))

    def _turn(self) -> None:
        """A piece of a prompt, a step of all rows, and the tokens of the step before; then one of a text alone."""
        try:
            self._admit()
            previous, self._flying = self._flying, self._step()
            if previous is not None:
                self._hand_out(*previous)
        except Exception as error:  # of the device, such as no memory: these rows are lost, the next may do
            self._lose_rows(error)
        self._go_on_alone()
        if self._calls:
            self._answer(*self._calls.popleft())

    def _answer(self, function: Callable[[], Any], future: concurrent.futures.Future) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    def _admit(self) -> None:
        """Reads waiting prompts, at most a chunk while others write, and gives their texts rows."""
        budget = self._ring.chunk
        while budget > 0 or not any(self._seats):
            with self._changed:
                for job in self._every_job():
                    job.waiting = [stream for stream in job.waiting if not stream.over]
                while self._jobs and not self._jobs[0].waiting:
                    self._jobs.popleft()
                job = self._jobs[0] if self._jobs else None
            if job is None:
                return
            tokens = job.request.prompts[0][:-1]  # the last one is read by the first step
            if job.read < len(tokens):
                before = job.read
                try:
                    job.read = self._ring.read(tokens, before)
                except Exception as error:
                    self._ring.forget()
                    self._end_job(job, error)
                budget -= job.read - before
            elif not self._place(job):
                return
            else:
                budget -= 1

    def _place(self, job: Job) -> bool:
        """Gives the next of the job's texts a row, if there is one."""
        row = next((row for row, seat in enumerate(self._seats) if seat is None), None)
        if row is None:
            return False
        stream, tokens = job.waiting[0], job.request.prompts[0]
        settings = Settings.of(job.request, stream.number, self._suppressed)
        while row >= self._ring.batch:
            self._ring.grow()
        self._seats[row] = Seat(stream, len(tokens), job.request.max_new_tokens)
        self._ring.resize(self._longest())
        if len(tokens) > 1:
            self._ring.place(row, len(tokens) - 1)
        self._rows = self._put(self._rows, row, settings, tokens)
        stream.start()
        with self._changed:
            job.waiting.remove(stream)
        return True

    def _put(self, rows: Rows, row: int, settings: Settings, tokens: list[int]) -> Rows:
        padded = np.zeros(self.lm.config.n_positions, np.int32)
        padded[: len(tokens)] = tokens
        return programs.put(rows, np.int32(row), settings, padded, np.int32(len(tokens)))

    def _step(self) -> tuple[Drawn, list[tuple[int, Stream]]] | None:
        """Starts to compute a token for every row."""
        for row, seat in enumerate(self._seats):
            if seat is not None and (seat.stream.over or not seat.left):
                self._seats[row] = None
                self._rows = self._put(self._rows, row, self._idle, [0])
        if not any(self._seats):
            return None
        self._shrink()
        self._ring.resize(self._longest())
        states = self._ring.step(self._rows.history)
        history, settings = self._rows.history, self._rows.settings
        history, drawn = programs.draw(self.lm.model, history, settings, self._line_table, states)
        self._rows = Rows(history, settings)
        taken = [(row, seat.stream) for row, seat in enumerate(self._seats) if seat is not None]
        for seat in filter(None, self._seats):
            seat.length, seat.left = seat.length + 1, seat.left - 1
        return drawn, taken

    def _longest(self) -> int:
        return max(seat.length for seat in self._seats if seat is not None)

    def _shrink(self) -> None:
        """Half as many rows, while that is enough."""
        used = [row for row, seat in enumerate(self._seats) if seat is not None]
        while self._ring.batch > 1 and len(used) <= self._ring.batch // 2:
            order = np.array(used + [row for row in range(self.rows) if row not in used], np.int32)
            self._ring.shrink(order)
            self._rows = programs.take(self._rows, order)
            self._seats = [self._seats[row] for row in order]
            used = list(range(len(used)))

    def _hand_out(self, drawn: Drawn, taken: list[tuple[int, Stream]]) -> None:
        tokens = np.asarray(drawn.token)
        scored = any(stream.request.options.logprobs is not None for _, stream in taken)
        scores = jax.device_get((drawn.logprob, drawn.top, drawn.top_tokens)) if scored else None
        for row, stream in taken:
            n, score = stream.request.options.logprobs, None
            if n is not None:
                logprob, top, top_tokens = (of_rows[row] for of_rows in scores)
                score = Score(float(logprob), top[:n], top_tokens[:n])
            hand(stream, int(tokens[row]), score)

    def _go_on_alone(self) -> None:
        """One more token of the job that shares no steps, or the next such job."""
        with self._changed:
            if self._alone is None and self._jobs_alone:
                job = self._jobs_alone.popleft()
                self._alone = job, write_alone(self.lm, job)
        if self._alone is None:
            return
        job, writing = self._alone
        try:
            if not all(stream.over for stream in job.waiting):
                next(writing)
                return
        except StopIteration:
            pass
        except Exception as error:
            self._end_job(job, error)
        self._alone = None

    def _end_job(self, job: Job, error: Exception) -> None:
        for stream in job.waiting:
            stream.fail(error)

    def _lose_rows(self, error: Exception) -> None:
        """Fails what has rows; what waits begins anew."""
        flying = [stream for _, stream in self._flying[1]] if self._flying else []
        for stream in [*flying, *(seat.stream for seat in self._seats if seat is not None)]:
            stream.fail(error)
        self._flying, self._seats = None, [None] * self.rows
        self._rows = self._idle_rows()
        self._ring.clear()
        with self._changed:
            for job in self._jobs:
                job.read = 0

    def _end_all(self, error: Exception) -> None:
        self._lose_rows(error)
        alone = [self._alone[0]] if self._alone else []
        for job in [*self._every_job(), *alone]:
            self._end_job(job, error)
        for _, future in self._calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

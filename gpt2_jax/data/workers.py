"""Processes that share the parts of corpora."""

import concurrent.futures.process
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from gpt2_jax.data.sources import Source
from gpt2_jax.errors import InputError


class pool:
    """`with pool(workers, sources) as run`: `run(function, items)` gives the results in order as they come."""

    def __init__(self, workers: int, sources: Iterable[Source]):
        parts = max((len(source.parts) for source in sources), default=1)
        self.workers = min(workers or os.cpu_count() or 1, parts)

    def __enter__(self) -> Callable[[Callable, Sequence], Iterator]:
        self.executor = None
        if self.workers <= 1:
            return map
        self.executor = concurrent.futures.ProcessPoolExecutor(
            self.workers, multiprocessing.get_context("spawn"), _start_worker, (os.getpid(),)
        )
        return self._run

    def _run(self, function: Callable, items: Sequence) -> Iterator:
        """Not `Executor.map`: that takes all items at once and keeps all results."""
        waiting: list[concurrent.futures.Future] = []
        for item in items:
            waiting.append(self.executor.submit(function, item))
            if len(waiting) > 2 * self.workers:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if self.executor is None:
            return
        if error is not None:
            for worker in multiprocessing.active_children():
                worker.terminate()
        self.executor.shutdown(wait=True, cancel_futures=True)
        if isinstance(error, concurrent.futures.process.BrokenProcessPool):
            raise InputError(
                "a process that prepares died, perhaps for want of memory; run again, it goes on after the finished "
                "parts: with fewer processes (--config.data.workers) if it comes again"
            ) from None


def _start_worker(parent: int) -> None:
    """One core each; ctrl-C is the parent's, and without it a worker has nothing to do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()

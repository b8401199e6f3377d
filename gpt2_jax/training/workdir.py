"""The folder of a run: one run at a time may write to it. And the log that is kept there."""

import contextlib
import datetime
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import filelock
import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from gpt2_jax.errors import InputError

LOCK, HOLDER = ".lock", ".holder"


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """Makes the workdir, and keeps other runs out of it until the end of this one, or of its process.

    Process 0 claims it for all processes of a run, which come here together.

    Raises:
      InputError: it cannot be made or written to, or another run is going on in it.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)  # JAX, asked for the first time, tells of each kind of device not there
    index, count = jax.process_index(), jax.process_count()
    logging.set_verbosity(verbosity)
    with contextlib.ExitStack() as resources:
        failure = None
        if index == 0:
            try:
                resources.enter_context(_locked(workdir))
            except InputError as error:
                failure = error
        if count > 1 and multihost_utils.broadcast_one_to_all(np.bool_(failure is not None)):
            raise failure or InputError(f"the workdir {workdir} is not to be had, as process 0 tells")
        if failure:
            raise failure
        yield


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    lock = filelock.FileLock(workdir / LOCK)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        (workdir / HOLDER).write_text(f"process {os.getpid()} on {socket.gethostname()} since {now}", "utf-8")
    except filelock.Timeout:
        raise InputError(
            f"another run is going on in {workdir} ({_holder(workdir)}); wait for its end, stop it, or give another "
            "--workdir"
        ) from None
    except NotImplementedError:
        logging.warning("the file system of %s has no locks: nothing keeps a second run out of it", workdir)
    except OSError as error:
        lock.release()
        raise InputError(
            f"the workdir {workdir} cannot be made or written to ({error.strerror}); choose another"
        ) from None
    try:
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):  # a note only; whatever keeps it from being deleted ends the run, too
                (workdir / HOLDER).unlink()
            lock.release()


def _holder(workdir: Path) -> str:
    try:
        return (workdir / HOLDER).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return "it does not say where"


class _LogFile(logging.logging.FileHandler):
    """Says once that the log cannot be written, not at each line."""

    failed = False

    def handleError(self, record: logging.logging.LogRecord) -> None:
        if not self.failed:
            print(f"{self.baseFilename} cannot be written ({sys.exception()}): the run goes on", file=sys.stderr)
        self.failed = True

    def close(self) -> None:
        with contextlib.suppress(OSError):  # told already
            super().close()


@contextlib.contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Sends all that is logged to a file; the terminal is left to the progress bar and what this module says."""
    root = logging.logging.getLogger()
    # absl's, and the one that Python or absl adds where a notebook or a script of one's own logs without absl's app.
    terminals = {logging.get_absl_handler(), *(h for h in root.handlers if type(h) is logging.logging.StreamHandler)}
    handler = _LogFile(file, encoding="utf-8")
    handler.setFormatter(logging.PythonFormatter())
    levels, verbosity = {terminal: terminal.level for terminal in terminals}, logging.get_verbosity()
    for terminal in terminals:
        terminal.setLevel(logging.logging.CRITICAL)
    logging.set_verbosity(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()
        logging.set_verbosity(verbosity)
        for terminal, level in levels.items():
            terminal.setLevel(level)

"""Runs Python that nobody has read, in a process of its own with limits; see confinement.py for its inside."""

import contextlib
import dataclasses
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

from gpt2_jax.errors import InputError
from gpt2_jax.evaluation import confinement
from gpt2_jax.generation.options import option

INSIDE = Path(confinement.__file__)
GRACE = 5.0  # seconds beyond the time for the process to start and to be killed by its own limit
CHUNK = 1 << 16
Result = Literal["passed", "failed", "ended", "time", "memory", "output", "killed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a process may use."""

    cpu_seconds: int = option(5, "Seconds of CPU time; three times as many, and 5, may pass on the clock.")
    memory_bytes: int = option(1 << 30, "Bytes of address space.")
    file_bytes: int = option(1 << 20, "Bytes of each file that is written.")
    output_bytes: int = option(1 << 16, "Bytes that may be printed.")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) is not int or value < 1:
                raise InputError(f"{field.name} is {value!r}; it must be a whole number, at least 1")

    def of_kernel(self) -> dict[str, int]:
        """The limits that the kernel keeps, by their names in `resource`."""
        return {
            "RLIMIT_CPU": self.cpu_seconds, "RLIMIT_AS": self.memory_bytes, "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_CORE": 0, "RLIMIT_NOFILE": 64,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a program ended.

    Attributes:
      result: "passed" (it ran to its end), "failed" (an exception), "ended" (it left before its end), "time",
        "memory", "output" (it printed too much) or "killed" (by a signal).
      output: what it printed, errors too, as far as it was read.
      seconds: on the clock.
    """

    result: Result
    output: str
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether the program came to its end without an error."""
        return self.result == "passed"


def check_supported() -> None:
    """Raises `InputError` where this machine cannot confine a process."""
    if reason := confinement.supported():
        raise InputError(f"executing generated code {reason}; generate here, and execute the samples elsewhere")


def describe(limits: Limits) -> str:
    """What executing means here, for people to decide."""
    files = "write files there alone" if confinement.guards_files() else "write files (this kernel has no Landlock)"
    return (
        "each program runs in a process and a temporary folder of its own, with an empty environment, "
        f"{limits.cpu_seconds} s of CPU, {limits.memory_bytes >> 20:,} MiB of memory, {limits.output_bytes >> 10:,} "
        f"KiB of output, no network, and no other process or thread; it can read this user's files and {files}"
    )


def run(code: str, limits: Limits = Limits()) -> Execution:
    """Runs `code` as a module to its end, or until a limit.

    The process leads a session of its own and can make no other process. Its environment is empty, its folder is
    removed.

    Raises:
      InputError: the machine cannot confine a process, or refuses to just now.
    """
    check_supported()
    token, (reading, writing) = secrets.token_hex(16), os.pipe()
    request = {"limits": limits.of_kernel(), "code": code, "token": token, "report": writing}
    in_folder = tempfile.TemporaryDirectory(prefix="gpt2_jax-", ignore_cleanup_errors=True)
    with in_folder as folder, os.fdopen(reading, "rb") as report:
        began = time.monotonic()
        try:
            process = _start(json.dumps(request).encode(), folder, writing)
        finally:
            os.close(writing)
        try:
            output, stopped = _watch(process, began + 3 * limits.cpu_seconds + GRACE, limits.output_bytes)
        finally:
            _kill(process)
        told = report.read()
    text = output.decode(errors="replace")
    if not told.startswith(confinement.READY) and stopped is None:
        reason = text.strip().rpartition("\n")[2]
        raise InputError(f"this machine refuses to confine a process ({reason}), so no code is run; try on another")
    finished = told == confinement.READY + token.encode()
    return Execution(stopped or _result(process.returncode, text, finished), text, time.monotonic() - began)


def _start(request: bytes, folder: str, report: int) -> subprocess.Popen:
    with tempfile.TemporaryFile() as stdin:  # not a pipe: a process that reads nothing would stop who writes
        stdin.write(request)
        stdin.seek(0)
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(INSIDE)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={},
            pass_fds=(report,),
            start_new_session=True,
        )


def _watch(process: subprocess.Popen, deadline: float, most: int) -> tuple[bytes, Literal["time", "output"] | None]:
    """What a process prints, until it ends or has to be ended, and then why."""
    output = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            piece = os.read(process.stdout.fileno(), CHUNK)
            output += piece[: most - len(output) + 1]
            if len(output) > most:
                return bytes(output[:most]), "output"
            if not piece:
                break
    try:
        process.wait(max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return bytes(output), "time"
    return bytes(output), None


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def _result(code: int, output: str, finished: bool) -> Result:
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return "time"  # the kernel's end of too much CPU
    if code < 0:
        return "killed"
    if code and output.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        return "memory"
    if code:
        return "failed"
    return "passed" if finished else "ended"

"""What code that nobody has read can do to the machine: nothing."""

import socket
import sys

import psutil
import pytest

from gpt2_jax import InputError
from gpt2_jax.evaluation import confinement, sandbox
from gpt2_jax.evaluation.sandbox import Execution, Limits, run

pytestmark = pytest.mark.skipif(confinement.supported() is not None, reason=f"executing code {confinement.supported()}")
LIMITS = Limits(cpu_seconds=1, memory_bytes=256 << 20, file_bytes=1 << 16, output_bytes=1 << 12)


@pytest.mark.parametrize(
    ("code", "result", "printed"),
    [
        ("def f(x):\n    return x + 1\nassert f(1) == 2\nprint('fine')", "passed", "fine"),
        ("import dataclasses, math, re, typing\n@dataclasses.dataclass\nclass A:\n    x: int\nA(1)", "passed", ""),
        ("assert False, 'no'", "failed", "AssertionError: no"),
        ("(", "failed", "SyntaxError"),
        ("def f():\n    return f()\nf()", "failed", "RecursionError"),
        ("raise SystemExit(0)", "ended", ""),
        ("exit(0)", "ended", ""),
        ("import os\nos._exit(0)", "ended", ""),
        ("import os\nos.abort()", "killed", ""),
        ("while True: pass", "time", ""),
        ("import os\nos.close(1)\nos.close(2)\nwhile True: pass", "time", ""),
        ("x = bytearray(10 << 30)", "memory", "MemoryError"),
        ("while True: print('x' * 1000)", "output", "xxx"),
        ("import os\nwhile True: os.fork()", "failed", "Operation not permitted"),
        ("import subprocess\nsubprocess.run(['ls'])", "failed", "Operation not permitted"),
        ("import threading\nthreading.Thread(target=print).start()", "failed", "can't start new thread"),
        ("import socket\nsocket.create_connection(('127.0.0.1', PORT))", "failed", "Operation not permitted"),
        ("import os\nos.kill(os.getppid(), 9)", "failed", "Operation not permitted"),
        ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))", "failed", "Error"),
        ("open('a', 'w').write('x')\nassert open('a').read() == 'x'", "passed", ""),
        ("open('a', 'wb').write(b'x' * (1 << 20))", "failed", "File too large"),
        ("import os\nassert not set(os.environ) - {'LC_CTYPE'}, os.environ", "passed", ""),
        ("import os\nassert os.listdir() == [], os.listdir()", "passed", ""),
        ("import sys\nassert sys.stdin.read() == ''", "passed", ""),
        ("import numpy", "failed", "ModuleNotFoundError"),
    ],
)
def test_what_code_can_do(code, result, printed, monkeypatch):
    monkeypatch.setenv("SECRET", "of the parent")
    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome = run(code.replace("PORT", str(server.getsockname()[1])), LIMITS)
    assert (outcome.result, printed in outcome.output) == (result, True), outcome
    assert outcome.passed == (result == "passed") and len(outcome.output) <= 1 << 12
    assert outcome.seconds < 3 * 1 + sandbox.GRACE + 5


@pytest.mark.skipif(not confinement.guards_files(), reason="this kernel has no Landlock")
def test_files_elsewhere_are_not_written_moved_or_removed(tmp_path):
    file = tmp_path / "mine"
    file.write_text("kept")
    attempts = ("open({0!r}, 'w')", "os.remove({0!r})", "os.rename({0!r}, 'mine')", "os.truncate({0!r}, 0)",
                "os.chmod({0!r}, 0)", "os.mkdir({0!r} + 's')", "os.symlink('/', {0!r} + 's')")  # fmt: skip
    lines = [
        f"try:\n    {a.format(str(file))}\n    raise SystemExit({a!r})\nexcept OSError:\n    pass" for a in attempts
    ]
    outcome = run("import os\n" + "\n".join(lines), LIMITS)
    assert outcome.passed, outcome
    assert file.read_text() == "kept" and list(tmp_path.iterdir()) == [file]


def test_no_process_and_no_folder_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    before = psutil.Process().children()  # of other tests
    run("import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()", LIMITS)
    assert list(tmp_path.iterdir()) == []
    assert set(psutil.Process().children()) <= set(before)


def test_the_clock_ends_what_uses_no_processor(monkeypatch):
    monkeypatch.setattr(sandbox, "GRACE", -1.5)
    outcome = run("import time\ntime.sleep(1000)", LIMITS)
    assert outcome.result == "time" and outcome.seconds < 30


def test_a_machine_that_cannot_confine_is_refused(monkeypatch):
    monkeypatch.setattr(confinement.platform, "machine", lambda: "riscv64")
    with pytest.raises(
        InputError, match="executing generated code needs Linux on x86_64 or aarch64, and this is linux"
    ):
        run("x = 1")
    monkeypatch.undo()
    monkeypatch.setattr(Limits, "of_kernel", lambda self: {"RLIMIT_NONE": 1})
    with pytest.raises(InputError, match=r"refuses to confine a process \(.*RLIMIT_NONE.*\), so no code is run"):
        run("x = 1")


def test_what_it_means_is_told_and_limits_are_checked():
    told = sandbox.describe(Limits())
    for part in ("5 s of CPU", "1,024 MiB of memory", "64 KiB of output", "no network", "no other process or thread"):
        assert part in told
    with pytest.raises(InputError, match="memory_bytes is 0; it must be a whole number, at least 1"):
        Limits(memory_bytes=0)
    assert not Execution("ended", "", 0.0).passed and sys.platform == "linux"

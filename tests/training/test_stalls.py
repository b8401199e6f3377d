"""Runs whose processes are killed, stopped or stuck: how they end, and that they go on as if nothing had been.

As a script it is one of several processes, see `watched`.
"""

import itertools
import json
import os
import re
import runpy
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import join

from gpt2_jax import InputError
from gpt2_jax.training import watchdog
from gpt2_jax.training.accounting import ALIVE, Clock
from gpt2_jax.training.checkpoint import Checkpoints
from gpt2_jax.training.device_options import DistributedConfig
from gpt2_jax.training.watchdog import Still, Watchdog, exit_code

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

OPTIONS = {
    "data": {"source": "files", "tokenizer": "characters", "split": "tail", "validation_fraction": 0.1},
    "model": {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 16, "scan_unroll": 1},
    "training": {"steps": 12, "log_every": 1, "batch_size": 8, "sample_tokens": 0},
    "evaluation": {"batch_size": 8, "windows": 8},
    "checkpoint": {"every": 3},
    "optimizer": {"warmup_steps": 2, "learning_rate": 1e-2, "final_learning_rate": 1e-3},
    "distributed": {"heartbeat_seconds": 10, "stall_seconds": 30},  # of a machine that has other things to do, too
}
STAYS = "the last checkpoint stays, and the same command goes on from there"
GONE = "killed, stopped, or its machine or network is gone"


@pytest.fixture
def train(tmp_path, pytestconfig):
    """Trains with accidents, see sabotage.py, in so many processes by local.sh or alone: (exit code, output)."""
    root = pytestconfig.rootpath
    (tmp_path / "corpus.txt").write_text("the rain in spain stays mainly in the plain.\n" * 100)
    options = OPTIONS | {"data": OPTIONS["data"] | {"paths": str(tmp_path / "corpus.txt")}}
    flags = [f"--config.{group}.{k}={v}" for group, values in options.items() for k, v in values.items()]
    python = tmp_path / "python"  # the interpreter that local.sh starts
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\nexec {sys.executable} {root}/tests/sabotage.py "$@"\n'
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_", "JAX_", "TPU_"))}
    environment = ours | {
        "PYTHON": str(python), "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)]),
        "XLA_FLAGS": "--xla_backend_optimization_level=0", "SABOTAGE": str(tmp_path / "plan"), "GRACE": "20",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"), "TF_CPP_MIN_LOG_LEVEL": "2",
    }  # fmt: skip

    def run(processes, accidents):
        (tmp_path / "plan").write_text("".join(json.dumps(line) + "\n" for line in accidents))
        launch = [str(root / "scripts/launch/local.sh"), str(processes), "--"]
        command = launch if processes > 1 else [str(python), str(root / "scripts/train.py")]
        command += [f"--config={root / 'configs/shakespeare_char.py'}", f"--workdir={tmp_path / 'run'}", *flags]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
        return done.returncode, done.stdout + done.stderr

    run.options = options
    return run


def test_a_killed_process_is_replaced_and_nothing_is_lost(train, tmp_path, pytestconfig, monkeypatch):
    """All are started again, and the losses are those of one process that nothing befell."""
    from short_runs import use_devices
    from test_loop import curve

    from gpt2_jax.training import loop

    code, log = train(2, [(0, 1, 8, "SIGKILL")])
    assert code == 0, log
    (ended,) = re.findall(r"^ended with (\d+); restart 1$", log, re.M)
    assert int(ended) == 128 + signal.SIGKILL
    assert re.search(
        rf"^process 0: error: nothing was heard for \d+ seconds of process 1 on .*: {GONE}; {STAYS}$", log, re.M
    )
    (step,) = map(int, re.findall(r"^resumed from step (\d+) of ", log, re.M))
    assert step in (3, 6) and len(re.findall(r"^done: 12 steps in ", log, re.M)) == 1

    shipped = runpy.run_path(str(pytestconfig.rootpath / "configs/shakespeare_char.py"))["get_config"]()
    for group, values in train.options.items():
        shipped[group].update(values)
    use_devices(monkeypatch, jax.devices()[:1])
    loop.train(shipped.to_dict(), tmp_path / "one")
    one, two = curve(tmp_path / "one"), curve(tmp_path / "run")
    assert one.keys() == two.keys() and len(one) > 12
    np.testing.assert_allclose([two[key] for key in one], list(one.values()), rtol=0, atol=1e-5)


def test_a_source_that_hangs_ends_the_run_and_says_where(train, tmp_path):
    started = time.monotonic()
    code, log = train(1, [(0, 0, 8, "hang")])
    assert code == watchdog.TEMPORARY and time.monotonic() - started < 600
    said = (
        "error: no progress for 30 seconds (distributed.stall_seconds) after step 8: the run waits for data; "
        f"see whether the source of the text and its disk still answer; {STAYS}\n"
    )
    for text in (log, (tmp_path / "run" / "train.log").read_text()):
        assert text.endswith(said) and re.search(r'File ".*sabotage.py", line \d+ in __next__\n', text)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.find() in (3, 6)


def watched(address: str, count: str, index: str, what: str) -> None:
    """A process of a run that waits for the others at its second step, and befalls process 1 before it."""
    join(address, count, index)
    config = DistributedConfig(heartbeat_seconds=60 if what in ("hang", "error") else 4, stall_seconds=4)
    add = jax.jit(jax.numpy.sum, out_shardings=jax.NamedSharding(jax.make_mesh((int(count),), "x"), jax.P()))
    everywhere = jax.NamedSharding(jax.make_mesh((int(count),), "x"), jax.P("x"))
    with Watchdog(config, Path(os.devnull)) as watching, Clock() as clock, watching.over(clock):
        for step in itertools.count(1):
            with clock.on("data_wait"):
                if (index, step) == ("1", 20):
                    befall(what)
            with clock.dispatching(step):
                found = add(jax.make_array_from_callback((int(count),), everywhere, lambda _: np.ones(1)))
            with clock.on("device_wait"):
                assert float(found) == int(count)
                time.sleep(0.05)


def befall(what: str) -> None:
    if what == "hang":
        time.sleep(600)
    if what == "error":
        raise InputError("the moon is full")
    os.kill(os.getpid(), getattr(signal, what))


def test_progress_is_what_the_clock_and_jax_do():
    signs = []
    with Clock() as clock:
        signs.append((clock.signs, clock.activity))
        with clock.on("data_wait"):
            signs.append((clock.signs, clock.activity))
            jax.monitoring.record_event(ALIVE)
            signs.append((clock.signs, clock.activity))
        signs.append((clock.signs, clock.activity))
    jax.monitoring.record_event(ALIVE)
    assert signs == [(0, "other"), (1, "data_wait"), (2, "data_wait"), (3, "other")] and clock.signs == 3


def test_time_that_a_process_was_stopped_for_is_no_stall():
    """After ctrl-Z and fg the clock has gone on, and nothing was wrong."""
    times = iter([0.0, 0.5, 1.0, 1.5, 5000.0, 5000.5, 5001.0])
    still = Still(clock=lambda: next(times))
    assert [still.see(value) for value in (1, 1, 1, 1, 2, 2)] == [0.0, 0.5, 1.0, 1.0 + 4 * watchdog.TICK, 0.0, 0.5]


@pytest.mark.parametrize(("seconds", "ends"), [(1, True), (0, False)])
def test_it_waits_for_ever_where_it_is_told_to(seconds, ends, monkeypatch):
    found = []
    monkeypatch.setattr(watchdog.Watchdog, "_leave", lambda self, end: (found.append(end), self._closed.set()))
    watching = Watchdog(DistributedConfig(stall_seconds=seconds), Path(os.devnull))
    with watching, Clock() as clock, watching.over(clock), clock.on("checkpoint"):
        watching._closed.wait(2.5)
    assert bool(found) == ends
    if ends:
        assert (found[0].code, found[0].stacks) == (75, True)
        assert found[0].message == (
            "no progress for 1 seconds (distributed.stall_seconds) after step 0: the run saves or restores a checkpoint"
            "; see whether the disk of the workdir still answers"
        )


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (KeyboardInterrupt(signal.SIGTERM), 143), (InputError("bad"), 2), (OSError("full"), 2),
     (TypeError("a bug"), 1), (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), 1)],
)  # fmt: skip
def test_exit_codes(error, code):
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("error", "theirs"),
    [(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), True), (ValueError("UNKNOWN: Gloo all-reduce failed"), True),
     (ValueError("axis 3"), False), (InputError("the hub's connection was lost"), False), (OSError("Socket"), False)],
)  # fmt: skip
def test_what_devices_raise_is_told_from_the_rest(error, theirs):
    assert watchdog.of_devices(error) == theirs


@pytest.mark.parametrize(
    ("count", "what", "code", "message"),
    [
        (2, "SIGKILL", 75, rf"nothing was heard for \d seconds of process 1 on \S+, last at step \d+: {GONE}; {STAYS}"),
        (2, "SIGSTOP", 75, rf"nothing was heard for \d seconds of process 1 on \S+, last at step \d+: {GONE}; {STAYS}"),
        (2, "hang", 75, r"no progress for 4 seconds \(distributed.stall_seconds\) after step 19: process 1 on \S+ "
         rf"waits for data; process 0 on \S+ (waits for|hands a step to) its devices; see whether .*; {STAYS}"),
        (2, "error", 2, "process 1 ended: the moon is full"),
    ],
)  # fmt: skip
def test_the_others_end_and_name_the_process(count, what, code, message, tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "XLA_FLAGS": ""}
    processes, logs = [], [tmp_path / f"{i}.log" for i in range(count)]
    for i, log in enumerate(logs):
        with log.open("w") as file:
            command = [sys.executable, __file__, address, str(count), str(i), what]
            processes.append(subprocess.Popen(command, env=environment, stderr=file))
    try:
        for i in {*range(count)} - {1}:
            assert processes[i].wait(120) == code, logs[i].read_text()
            assert re.search(rf"^process {i}: error: {message}$", logs[i].read_text(), re.M), logs[i].read_text()
            assert ("most recent call first" in logs[i].read_text()) == (what == "hang")
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    watched(*sys.argv[1:])

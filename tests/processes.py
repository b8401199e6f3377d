"""Several processes of one run on this machine, each with CPU devices of its own: a test file started as a script."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax


def run_together(script: str, count: int, folder: Path, timeout: float = 300) -> None:
    """Runs `script ADDRESS COUNT INDEX FOLDER` in so many processes, which must all end well."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    command = [sys.executable, script, address, str(count)]
    logs = [folder / f"process-{i}.log" for i in range(count)]  # not pipes: one that is full would stop its process
    processes = []
    for i, log in enumerate(logs):
        with log.open("w") as file:
            processes.append(subprocess.Popen([*command, str(i), str(folder)], env=environment, stderr=file))
    end = time.monotonic() + timeout
    try:
        for process in processes:
            process.wait(max(0.0, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ends = [process.returncode for process in processes]
    assert ends == [0] * count, "\n".join([str(ends), *(log.read_text()[-5000:] for log in logs)])


def join(address: str, count: str, index: str, devices: int = 1) -> None:
    """Makes this one of the processes, with so many devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, int(count), int(index))

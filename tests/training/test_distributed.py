"""Which of several processes this is: from options, variables, SLURM, Open MPI, a TPU; and what is said if it fails."""

import dataclasses
import os
import socket
import subprocess
import sys
import time

import jax
import pytest

from gpt2_jax import Config, InputError
from gpt2_jax.config import DistributedConfig
from gpt2_jax.training import distributed
from gpt2_jax.training.changes import differences
from gpt2_jax.training.distributed import Meeting, Process, find, start

TOLD = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
SLURM = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_NODELIST": "node[001-002]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}  # fmt: skip
OPEN_MPI_5 = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
TPU = {"TPU_ML_PLATFORM": "JAX"}


@pytest.mark.parametrize(
    ("options", "environment", "meeting"),
    [
        ({}, {}, None),
        ({}, TOLD, Meeting("host:1234", 4, 3)),
        ({"process_id": 0}, TOLD, Meeting("host:1234", 4, 0)),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 1}, {}, Meeting("a:1", 2, 1)),
        ({"coordinator": "a:1"}, OPEN_MPI_5, Meeting("a:1", 4, 3)),
        ({"coordinator": "a:1"}, SLURM, Meeting("a:1", 2, 1)),
        ({"num_processes": 1}, {}, None),
        ({}, {"JAX_NUM_PROCESSES": "1"}, None),
        ({"mode": "off"}, TOLD, None),
        ({}, SLURM, Meeting(None, 2, None, "slurm", [])),
        ({}, SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2"}, Meeting(None, 2, None, "slurm")),
        ({}, SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x3),2"}, Meeting(None, 2, None, "slurm")),
        ({}, SLURM | {"SLURM_NTASKS": "1"}, None),
        ({}, {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # a batch script without srun
        ({}, OPEN_MPI, Meeting(None, 4, None, "ompi")),
        ({}, OPEN_MPI | {"CUDA_VISIBLE_DEVICES": "3"}, Meeting(None, 4, None, "ompi", [])),
        ({}, OPEN_MPI | {"CUDA_VISIBLE_DEVICES": "0,1"}, Meeting(None, 4, None, "ompi")),
        ({}, SLURM | {"JAX_LOCAL_DEVICE_IDS": "0"}, Meeting(None, 2, None, "slurm")),
        ({}, TPU, Meeting(method="gcetpu")),
        ({}, TPU | {"TPU_WORKER_HOSTNAMES": "a,b"}, Meeting(method="gketpu")),
        ({}, TPU | {"TPU_SKIP_MDS_QUERY": "1"}, None),
    ],
)
def test_who_this_is(options, environment, meeting):
    assert find(DistributedConfig(**options), environment) == meeting


@pytest.mark.parametrize(
    ("options", "environment", "message"),
    [
        (
            {"process_id": 1},
            {},
            r"missing is its coordinator \(--config.distributed.coordinator, or the environment's JAX_COORDINATOR_ADDR"
            r"ESS\), and its num_processes \(--config.distributed.num_processes, or .* OMPI_COMM_WORLD_SIZE or SLURM_",
        ),
        (
            {"coordinator": "a:1", "num_processes": 2},
            {},
            r"what is missing is its process_id \(--config.distributed.process_id, or the environment's JAX_PROCESS_ID"
            r" or OMPI_COMM_WORLD_RANK or SLURM_PROCID\); --config.distributed.mode=off runs this process alone",
        ),
        ({}, TOLD | {"JAX_PROCESS_ID": "x"}, "JAX_PROCESS_ID is 'x'; it must be a whole number"),
        ({}, TOLD | {"JAX_PROCESS_ID": "4"}, r"process_id is 4; it must be from 0 to .*num_processes - 1 \(3\)"),
        ({}, TOLD | {"JAX_COORDINATOR_ADDRESS": "host"}, "coordinator is 'host'; it must be HOST:PORT"),
        ({}, OPEN_MPI_5, "Open MPI started 4 processes and, since its version 5, does not say where they meet; add"),
        ({"mode": "on"}, {}, "mode is 'on' and this process is alone: neither options nor SLURM, Open MPI or a TPU's"),
        ({"mode": "on", "num_processes": 1}, {}, "alone: the number of processes is 1; start it with scripts/launch/"),
    ],
)
def test_what_is_not_clear_is_refused(options, environment, message):
    with pytest.raises(InputError, match=message):
        find(DistributedConfig(**options), environment)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "maybe"}, "distributed.mode is 'maybe'; it must be 'auto' or 'on' or 'off'"),
        ({"coordinator": "host:"}, "distributed.coordinator is 'host:'; it must be HOST:PORT, such as 10.0.0.1:8476"),
        ({"coordinator": ":80"}, "distributed.coordinator is ':80'; it must be HOST:PORT"),
        ({"num_processes": -1}, "distributed.num_processes is -1; it must be 1 or more, or 0"),
        ({"process_id": -2}, "distributed.process_id is -2; it must be from 0 to distributed.num_processes - 1, or -1"),
        ({"num_processes": 2, "process_id": 2}, r"process_id is 2; it must be from 0 to .* \(1\), or -1"),
        ({"mode": "off", "process_id": 0}, "distributed.mode is 'off'; it must be 'auto' or 'on' where"),
        ({"heartbeat_seconds": 0}, "distributed.heartbeat_seconds is 0; it must be at least 1"),
        ({"stall_seconds": -1}, r"distributed.stall_seconds is -1; it must be 0 \(off\) or more"),
        ({"preemption_notice": "aws"}, "distributed.preemption_notice is 'aws'; it must be 'auto' or 'gce' or 'off'"),
        ({"initialization_seconds": 0}, "distributed.initialization_seconds is 0; it must be at least 1"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        Config.from_dict({"distributed": options})


def test_a_run_may_go_on_in_other_processes():
    saved = Config.from_dict({}).to_dict()
    wanted = Config.from_dict({"distributed": dataclasses.asdict(DistributedConfig("auto", "a:1", 2, 1))}).to_dict()
    assert differences(saved, wanted) == []
    del saved["distributed"]  # of a run before there were these options
    assert differences(saved, wanted) == []


@pytest.fixture
def alone(monkeypatch):
    """No variables of launchers, whatever runs these tests."""
    for name in os.environ:
        if name.startswith(("JAX_COORDINATOR", "JAX_NUM_PROC", "JAX_PROCESS", "OMPI_", "SLURM_", "TPU_", "CUDA_VIS")):
            monkeypatch.delenv(name)


@pytest.fixture
def initialized(alone, monkeypatch):
    """The calls of `jax.distributed.initialize`, of which none is made."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


def test_alone_nothing_starts(initialized, capfd):
    assert start(DistributedConfig()) == Process() and initialized == []
    assert Process().prefix == "" and Process().exit_code(2) == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("environment", "who", "method", "devices"),
    [
        (TOLD, ("host:1234", 4, 3), "deactivate", None),
        (SLURM, (None, None, None), "slurm", []),
        (OPEN_MPI, (None, None, None), "ompi", None),
        (TPU, (None, None, None), "gcetpu", None),
    ],
)
def test_what_jax_is_told(initialized, monkeypatch, capfd, environment, who, method, devices):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    monkeypatch.setattr(jax, "device_count", lambda: 32)
    process = start(DistributedConfig(heartbeat_seconds=50, initialization_seconds=20))
    assert process == Process(3, 4) and process.prefix == "process 3: "
    assert capfd.readouterr().out == f"process 3 of 4 on {socket.gethostname()}, 8 of 32 devices\n"
    (call,) = initialized
    assert call == (
        who,
        {
            "local_device_ids": devices, "cluster_detection_method": method, "initialization_timeout": 80,
            "heartbeat_timeout_seconds": 110, "shutdown_timeout_seconds": 50,
        },
    )  # fmt: skip


def test_jax_finds_slurm_and_open_mpi_by_the_same_signs(alone, monkeypatch):
    """JAX's own detection, up to where it would connect."""
    from jax._src.clusters import OmpiCluster, SlurmCluster

    for cluster, environment, wanted in (
        (SlurmCluster, SLURM, ("node001:61517", 2, 1)),
        (OmpiCluster, OPEN_MPI, ("10.96.0.1:64816", 4, 3)),
    ):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert cluster.is_env_present()
            found = cluster.get_coordinator_address(1, None), cluster.get_process_count(), cluster.get_process_id()
            assert found[1:] == wanted[1:] and found[0].split(":")[0] == wanted[0].split(":")[0]
        for name in environment:
            if name in (*distributed.SLURM, distributed.OPEN_MPI_4):
                with monkeypatch.context() as patch:
                    for other in environment.keys() - {name}:
                        patch.setenv(other, environment[other])
                    assert not cluster.is_env_present()


def test_a_tpu_of_one_host_is_alone(initialized, monkeypatch, capfd):
    monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")
    assert start(DistributedConfig()) == Process() and capfd.readouterr().out == ""
    with pytest.raises(InputError, match="mode is 'on' and this process is alone: a TPU of one host"):
        start(DistributedConfig(mode="on"))


def test_what_jax_says_is_passed_on(alone, monkeypatch):
    monkeypatch.setenv("TPU_ML_PLATFORM", "JAX")

    def fail(*_, **__):
        raise RuntimeError("no\nmetadata")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(
        InputError,
        match=r"this process \(found by JAX's 'gcetpu'\) could not join the others: no metadata; .*mode=off runs it",
    ):
        start(DistributedConfig())


def test_a_port_that_is_taken(alone):
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"process 0 of 2 cannot listen at port {port} \(.*\); is another run on"):
            start(DistributedConfig("auto", f"localhost:{port}", 2, 0))


def test_others_that_are_missing_although_process_0_is_there(alone, monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: time.sleep(3))
    with socket.socket() as process_0:
        process_0.bind(("localhost", 0))
        process_0.listen()
        address = f"localhost:{process_0.getsockname()[1]}"
        with pytest.raises(
            InputError, match=f"process 1 of 3 found process 0 at {address}, but not all others came wit"
        ):
            start(DistributedConfig("auto", address, 3, 1, initialization_seconds=1))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            1,
            "error: process 1 of 2 found no process 0 at localhost:{port} within 2 seconds (distributed.init",
        ),
        (
            0,
            "error: process 0 of 2 waited in vain for the others within 2 seconds (distributed.init",
        ),
    ],
)
def test_nobody_comes(index, message, alone, tmp_path, pytestconfig):
    """For real: JAX itself would abort the process."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    root = pytestconfig.rootpath
    command = [
        sys.executable, str(root / "scripts/train.py"), f"--config={root / 'configs/quickstart.py'}",
        f"--workdir={tmp_path / 'run'}", f"--config.distributed.coordinator=localhost:{port}",
        "--config.distributed.num_processes=2", f"--config.distributed.process_id={index}",
        "--config.distributed.initialization_seconds=2",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    started = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2 and time.monotonic() - started < 60
    assert result.stderr.startswith(message.format(port=port)) and "Traceback" not in result.stderr
    assert result.stdout == "" and not (tmp_path / "run").exists()

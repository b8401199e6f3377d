"""A run in several processes: which of them this one is, where they meet, and how they start together.

Each process learns it from the first of these that says something: `config.distributed` completed by environment
variables, then what SLURM, Open MPI or a TPU's metadata tell JAX. One process alone starts nothing.
"""

import dataclasses
import os
import queue
import re
import socket
import threading
from collections.abc import Mapping

import jax
from absl import logging

from gpt2_jax.config import DistributedConfig
from gpt2_jax.errors import InputError, one_line

# Where an option that is not given is looked up; a launcher sets these, so that all hosts get the same command line.
COORDINATOR = ("JAX_COORDINATOR_ADDRESS",)
NUM_PROCESSES = ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")
PROCESS_ID = ("JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")

OPEN_MPI_4 = "OMPI_MCA_orte_hnp_uri"  # says where mpirun is; Open MPI 5 has nothing of the kind
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")  # inside of srun
GKE = ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")

PATIENCE = 60  # seconds that JAX waits longer than we do: where it gives up, it aborts the process
FAREWELL = 15.0  # seconds that a process which failed waits for the others to end, too


@dataclasses.dataclass(frozen=True)
class Process:
    """One of the processes of a run.

    Attributes:
      index: which; process 0 prints and writes.
      count: of how many.
    """

    index: int = 0
    count: int = 1

    @property
    def prefix(self) -> str:
        """What its errors start with: nothing if it is alone."""
        return f"process {self.index}: " if self.count > 1 else ""

    def exit_code(self, code: int) -> int:
        """`code`, with which this process is about to end after an error.

        A process that ends waits for the others, which never come if they wait for this one in the middle of a step.
        So it ends without them in a while; what ends them, see watchdog.py.
        """
        if self.count > 1:
            farewell = threading.Timer(FAREWELL, os._exit, (code,))
            farewell.daemon = True
            farewell.start()
        return code


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Where the processes meet: numbers that were given, or who can be asked.

    Attributes:
      coordinator, num_processes, process_id: as of `DistributedConfig`; None if `method` knows them.
      method: JAX's name of what it asks, or "deactivate".
      local_device_ids: the GPUs of this process; [] is all, None leaves it to JAX, which gives each process of SLURM or
        Open MPI one.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    method: str = "deactivate"
    local_device_ids: list[int] | None = None

    @property
    def who(self) -> str:
        """This process, in the words of an error."""
        if self.process_id is None:
            return f"this process (found by JAX's {self.method!r})"
        return f"process {self.process_id} of {self.num_processes}"


def start(config: DistributedConfig) -> Process:
    """Joins this process with the others of its run, if there are any, and says so in a line.

    To be called before anything asks JAX for a device.

    Raises:
      InputError: it is not clear which process this is, or the others do not come in time.
    """
    meeting = find(config, os.environ)
    if meeting is None:
        return Process()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)  # JAX tells where it connects to, and of each kind of device not there
    try:
        _join(meeting, config)
        process = Process(jax.process_index(), jax.process_count())
    finally:
        logging.set_verbosity(verbosity)
    if process.count == 1 and config.mode == "on":
        raise InputError(_alone("a TPU of one host"))
    if process.count > 1:
        host, own, total = socket.gethostname(), jax.local_device_count(), jax.device_count()
        line = f"process {process.index} of {process.count} on {host}, {own} of {total} devices\n"
        print(line, end="", flush=True)  # in one write: the others print to the same terminal
    return process


def find(config: DistributedConfig, environment: Mapping[str, str]) -> Meeting | None:
    """Where this process meets the others, or None if it is alone; nothing is started.

    Raises:
      InputError: options that are incomplete or contradict each other, or `mode` "on" and a process alone.
    """
    if config.mode == "off":
        return None
    meeting = _told(config, environment) or _detected(environment)
    if config.mode == "on" and meeting is None:
        raise InputError(_alone("neither options nor SLURM, Open MPI or a TPU's metadata say anything else"))
    if meeting is not None and meeting.num_processes == 1:
        if config.mode == "on":
            raise InputError(_alone("the number of processes is 1"))
        return None
    return meeting


def _alone(why: str) -> str:
    return (
        f"distributed.mode is 'on' and this process is alone: {why}; start it with scripts/launch/, give "
        "--config.distributed.coordinator, .num_processes and .process_id, or leave distributed.mode at 'auto'"
    )


def _told(config: DistributedConfig, environment: Mapping[str, str]) -> Meeting | None:
    """The meeting that options and environment variables of our own name, if they name any part of one."""
    given = config.coordinator or config.num_processes or config.process_id >= 0
    if not given and not any(names[0] in environment for names in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)):
        return None
    coordinator = config.coordinator or environment.get(COORDINATOR[0], "")
    count = config.num_processes or _number(NUM_PROCESSES, environment)
    index = config.process_id if config.process_id >= 0 else _number(PROCESS_ID, environment)
    if count == 1:
        return Meeting(num_processes=1)
    missing = [
        f"{option} (--config.distributed.{option}, or the environment's {' or '.join(names)})"
        for option, names, value in (
            ("coordinator", COORDINATOR, coordinator or None),
            ("num_processes", NUM_PROCESSES, count),
            ("process_id", PROCESS_ID, index),
        )
        if value is None
    ]
    if missing:
        raise InputError(
            f"a run of several processes was asked for, and what is missing is its {', and its '.join(missing)}; "
            "--config.distributed.mode=off runs this process alone"
        )
    # Once more, now that it is complete: the parts may come from different places.
    DistributedConfig("auto", coordinator, count, index)
    return Meeting(coordinator, count, index)


def _number(names: tuple[str, ...], environment: Mapping[str, str]) -> int | None:
    for name in names:
        if name in environment:
            if not environment[name].isdecimal():
                raise InputError(f"the environment's {name} is {environment[name]!r}; it must be a whole number")
            return int(environment[name])
    return None


def _detected(environment: Mapping[str, str]) -> Meeting | None:
    """What JAX is to ask, by the same signs by which JAX knows it."""
    own = _local_device_ids(environment)
    if OPEN_MPI_4 in environment:
        return Meeting(None, _number(NUM_PROCESSES[1:2], environment), None, "ompi", own)
    if (_number(NUM_PROCESSES[1:2], environment) or 1) > 1:
        raise InputError(
            f"Open MPI started {environment['OMPI_COMM_WORLD_SIZE']} processes and, since its version 5, does not say "
            "where they meet; add --config.distributed.coordinator=HOST:PORT, a free port on the host of rank 0"
        )
    if all(name in environment for name in SLURM):
        return Meeting(None, _number(NUM_PROCESSES[2:], environment), None, "slurm", own)
    if environment.get("TPU_ML_PLATFORM") == "JAX":  # set by importing JAX where libtpu and a chip are
        if any(name in environment for name in GKE):
            return Meeting(method="gketpu")
        if "TPU_SKIP_MDS_QUERY" not in environment:
            return Meeting(method="gcetpu")
    return None


def _local_device_ids(environment: Mapping[str, str]) -> list[int] | None:
    """[] (all) where JAX would take the GPU of the process's number on its host, and that is wrong.

    That is so for one process a host, which would leave the other GPUs idle, and for processes that see but one GPU
    each, whose number is 0 in all of them.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    tasks = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") or environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    one_each_host = re.fullmatch(r"1(\(x\d+\))?(,1(\(x\d+\))?)*", tasks)  # SLURM writes 1(x4),2 for 1, 1, 1, 1, 2
    sees_one_gpu = re.fullmatch(r"[^,]+", environment.get("CUDA_VISIBLE_DEVICES", ""))
    return [] if one_each_host or sees_one_gpu else None


def _join(meeting: Meeting, config: DistributedConfig) -> None:
    """`jax.distributed.initialize`, with errors for people.

    JAX waits for the others in C++, deaf to ctrl-C, and in the end aborts the process. Hence a thread of its own, and
    a main thread that gives up first.
    """
    if meeting.process_id == 0:
        _check_port(meeting)
    ended: queue.Queue[Exception | None] = queue.Queue()

    # JAX's own service would take SIGTERM and do nothing until interruption.py does.
    jax.config.update("jax_enable_preemption_service", False)

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                meeting.coordinator,
                meeting.num_processes if meeting.method == "deactivate" else None,
                meeting.process_id,
                local_device_ids=meeting.local_device_ids,
                cluster_detection_method=meeting.method,
                initialization_timeout=config.initialization_seconds + PATIENCE,
                heartbeat_timeout_seconds=config.heartbeat_seconds + PATIENCE,
                shutdown_timeout_seconds=max(config.heartbeat_seconds, config.initialization_seconds),
            )
        except Exception as error:
            ended.put(error)
        else:
            ended.put(None)

    threading.Thread(target=initialize, name="jax.distributed", daemon=True).start()
    try:
        error = ended.get(timeout=config.initialization_seconds)
    except queue.Empty:
        raise InputError(_why_nobody_came(meeting, config.initialization_seconds)) from None
    if error is not None:
        raise InputError(
            f"{meeting.who} could not join the others: {one_line(error)}; --config.distributed.coordinator, "
            ".num_processes and .process_id say it explicitly, and --config.distributed.mode=off runs it alone"
        ) from error


def _check_port(meeting: Meeting) -> None:
    """Raises `InputError` if process 0 cannot listen where the others expect it; JAX would crash."""
    port = int(meeting.coordinator.rpartition(":")[2])
    family = socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise InputError(
                f"{meeting.who} cannot listen at port {port} ({error.strerror}); is another run on this machine? "
                "Choose another port in --config.distributed.coordinator"
            ) from None


def _why_nobody_came(meeting: Meeting, seconds: int) -> str:
    """Tells a coordinator that is not there from others that are missing."""
    late = f"within {seconds} seconds (distributed.initialization_seconds)"
    if meeting.coordinator is None or meeting.process_id == 0:
        return f"{meeting.who} waited in vain for the others {late}; see whether each of them started"
    host, _, port = meeting.coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        return (
            f"{meeting.who} found no process 0 at {meeting.coordinator} {late}: {error.strerror or error}; see whether "
            "it started, and whether that port of its host can be reached from here"
        )
    return f"{meeting.who} found process 0 at {meeting.coordinator}, but not all others came {late}"

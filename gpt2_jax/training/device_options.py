"""The options of the devices that a run is on, and of its processes."""

import dataclasses
from typing import Literal

from gpt2_jax.errors import check


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; one axis may be -1: all devices that the others leave.

    Attributes:
      data: copies of the model, each with its part of the batch.
      fsdp: shards of every parameter and its optimizer moments; the batch is cut along this axis too.
      model: shards of attention heads, MLP width and vocabulary (tensor parallelism).
      sequence: parts of every sequence (context parallelism); keys and values are gathered for attention.
      slices: TPU slices that a slower network joins, or nodes, each with its part of `data`; 0 is what the devices
        say. Where they say nothing, equal parts of them in their order.
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1
    sequence: int = 1
    slices: int = 0

    def __post_init__(self):
        axes = {name: size for name, size in dataclasses.asdict(self).items() if name != "slices"}
        for axis, size in axes.items():
            check(size >= 1 or size == -1, f"mesh.{axis}", size, "at least 1, or -1 for the devices left")
        check(self.slices >= 0, "mesh.slices", self.slices, "0 or more")
        check(
            list(axes.values()).count(-1) <= 1,
            "mesh",
            axes,
            "-1 on one axis at most",
        )


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """The processes that a run consists of, usually one a host; see training/distributed.py.

    Attributes:
      mode: "auto" joins the others if options, environment variables, SLURM, Open MPI or a TPU's metadata tell of any;
        "on" refuses to run alone; "off" runs alone whatever they tell.
      coordinator: "HOST:PORT" of process 0, as the others reach it; empty: the environment's JAX_COORDINATOR_ADDRESS.
      num_processes: in all; 0: the environment's JAX_NUM_PROCESSES, OMPI_COMM_WORLD_SIZE or SLURM_NTASKS.
      process_id: of this one, from 0; -1: the environment's JAX_PROCESS_ID, OMPI_COMM_WORLD_RANK or SLURM_PROCID.
      heartbeat_seconds: after which a process that is not heard of any more counts as lost, and ends all others.
      stall_seconds: without progress once the data is open, after which a run ends and says what it waits for, also one
        of a single process; longer than it takes to compile a step, or to save a checkpoint. 0 waits for ever.
      preemption_notice: whom to ask whether this machine is to be taken away, which counts as SIGTERM: "auto" asks
        Google's metadata server on Google's VMs, "gce" does so wherever this is, "off" waits for signals alone.
      initialization_seconds: that processes wait for each other at the start.
    """

    mode: Literal["auto", "on", "off"] = "auto"
    coordinator: str = ""
    num_processes: int = 0
    process_id: int = -1
    heartbeat_seconds: int = 100
    stall_seconds: int = 1800
    preemption_notice: Literal["auto", "gce", "off"] = "auto"
    initialization_seconds: int = 300

    def __post_init__(self):
        host, _, port = self.coordinator.rpartition(":")
        check(
            not self.coordinator or (host != "" and port.isdecimal() and 0 < int(port) < 65536),
            "distributed.coordinator",
            self.coordinator,
            "HOST:PORT, such as 10.0.0.1:8476",
        )
        check(
            self.num_processes >= 0,
            "distributed.num_processes",
            self.num_processes,
            "1 or more, or 0 (from the environment)",
        )
        check(
            self.process_id >= -1 and (self.num_processes == 0 or self.process_id < self.num_processes),
            "distributed.process_id",
            self.process_id,
            "from 0 to distributed.num_processes - 1" + f" ({self.num_processes - 1})" * (self.num_processes > 0)
            + ", or -1 (from the environment)",
        )  # fmt: skip
        check(
            self.mode != "off" or (self.coordinator, self.num_processes, self.process_id) == ("", 0, -1),
            "distributed.mode",
            self.mode,
            "'auto' or 'on' where distributed.coordinator, num_processes or process_id is given",
        )
        check(self.heartbeat_seconds >= 1, "distributed.heartbeat_seconds", self.heartbeat_seconds, "at least 1")
        check(self.stall_seconds >= 0, "distributed.stall_seconds", self.stall_seconds, "0 (off) or more")
        check(
            self.initialization_seconds >= 1,
            "distributed.initialization_seconds",
            self.initialization_seconds,
            "at least 1",
        )

"""The machines that can be compiled for without having them, by name: "v5e-8", "h100-8", "2xv5e-16".

The number counts chips, one device each. Cloud TPU counts cores of v4 and v5p, of which a chip has two: its v4-32 is
the v4-16 here. On v2, v3 and TPU7x a chip is two devices; they are not in the table.
"""

import dataclasses
import math
import re
from typing import Any, Literal

from gpt2_jax.errors import InputError
from gpt2_jax.training.flops import peak_of_kind

GiB = 2**30

# What NVIDIA's driver would say of the card, for XLA, which has none to ask. Without the versions XLA refuses it.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device; all rates are published ones, which nothing reaches.

    Attributes:
      kind: JAX's `device_kind`, by which training/flops.py knows the peak.
      memory: bytes of HBM for a program. Of a TPU what its compiler grants, read from its refusal of a larger one; of
        a GPU the three quarters that JAX takes by default.
      bandwidth: of the HBM, bytes/s.
      link: bytes/s that one link to a neighbour carries one way; of a GPU, all of its NVLink.
      cores: how many Cloud TPU counts as one chip in its own names.
    """

    kind: str
    memory: float
    bandwidth: float
    link: float
    cores: int = 1

    @property
    def peak(self) -> float:
        """bfloat16 FLOP/s."""
        return peak_of_kind(self.kind)


# Of TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. Interconnect is published for a chip, one way 300, 200, 600
# and 400 GB/s (2400, 1600, 4800 and 3200 Gbit/s), over 6, 4, 6 and 4 links. Of the H100 SXM: NVIDIA's data sheet, 3.35
# TB/s, and 900 GB/s of NVLink both ways together.
CHIPS = {
    "v4": Chip("TPU v4", 30.75 * GiB, 1228e9, 50e9, cores=2),
    "v5e": Chip("TPU v5 lite", 15.75 * GiB, 819e9, 50e9),
    "v5p": Chip("TPU v5", 95.74 * GiB, 2765e9, 100e9, cores=2),
    "v6e": Chip("TPU v6 lite", 31.25 * GiB, 1640e9, 100e9),
    "h100": Chip("NVIDIA H100 80GB HBM3", 0.75 * 84929347584, 3352e9, 450e9),
}
FLAT = {
    1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8), 128: (8, 16), 256: (16, 16),
}  # fmt: skip
CUBIC = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (4, 4, 8)}
SHAPES = {"v4": CUBIC, "v5e": FLAT, "v5p": CUBIC, "v6e": FLAT, "h100": {1: (1,), 2: (2,), 4: (4,), 8: (8,)}}

# Of one chip between slices: two NICs of 100 Gbit/s serve the eight chips of a v5e host (its page in those docs). Other
# hosts have more or fewer; the figure stands for all, being of use for the order of magnitude only.
NETWORK = 25e9 / 8


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that are joined: `slices` of them, each of `shape`."""

    name: str
    family: str  # of CHIPS
    shape: tuple[int, ...]
    slices: int

    @property
    def chip(self) -> Chip:
        """What kind of chip it is made of."""
        return CHIPS[self.family]

    @property
    def platform(self) -> Literal["tpu", "cuda"]:
        """JAX's name of what compiles for it."""
        return "cuda" if self.family == "h100" else "tpu"

    @property
    def links(self) -> int:
        """Of the chip that has the fewest neighbours, as others wait for it: one at each end of a line, two in a ring.

        Lines become rings in slices of whole 4 x 4 x 4 cubes (v4, v5p), and at 16 chips (v5e, v6e).
        """
        if self.platform == "cuda":
            return min(1, self.shape[0] - 1)
        cubic = len(self.shape) == 3
        ring = lambda size: all(n % 4 == 0 for n in self.shape) if cubic else size == 16
        return sum(0 if size == 1 else 2 if ring(size) else 1 for size in self.shape)

    def description(self) -> dict[str, Any]:
        """Arguments of `jax.experimental.topologies.get_topology_desc`."""
        if self.platform == "cuda":
            topology = f"1x1x{self.shape[0]}"
            return {"platform": "cuda", "topology_name": "", "target_config": H100, "topology": topology}
        arguments = {"platform": "tpu", "topology_name": f"{self.family}:{'x'.join(map(str, self.shape))}"}
        if self.shape == (1, 1):
            arguments["chips_per_host_bounds"] = (1, 1, 1)
        if self.family == "v4":
            arguments["chip_config_name"] = "megacore"  # one device a chip, as programs see it there
        if self.slices > 1:
            arguments["num_slices"] = self.slices
        return arguments

    def __str__(self) -> str:
        count = self.slices * math.prod(self.shape)
        shape = "x".join(map(str, self.shape))
        text = f"{self.name}: {count} x {self.chip.kind}"
        if self.platform == "tpu":
            text += f", {f'{self.slices} slices of ' if self.slices > 1 else ''}{shape}"
        if self.chip.cores > 1:
            text += f" (Cloud TPU counts cores: {self.family}-{math.prod(self.shape) * self.chip.cores})"
        return text


def find(name: str) -> Topology:
    """The topology of this name, or of so many slices: "2xv5e-8".

    Raises:
      InputError: there is none, or GPUs are asked for in several nodes.
    """
    match = re.fullmatch(r"(?:([1-9]\d{0,2})x)?(\w+)-(\d{1,5})", name.lower())
    slices, family, count = match.groups() if match else (None, None, 0)
    shape = SHAPES.get(family, {}).get(int(count))
    if shape is None:
        known = "; ".join(f"{family}-{'/'.join(map(str, sizes))}" for family, sizes in SHAPES.items())
        raise InputError(
            f"there is no topology {name!r}; the number counts chips, and there are {known}; several slices of TPUs are"
            " 2xv5e-8"
        )
    topology = Topology(name, family, shape, int(slices or 1))
    if topology.slices > 1 and topology.platform == "cuda":
        raise InputError(f"{name} is several nodes of GPUs, which are not described here; use {family}-{count}")
    return topology

"""How fast a step could be at most: arithmetic on published rates and on what the compiler says. Nothing is measured.

Each bound is the time of one resource that is always busy; a step takes at least the longest of them. Letters as in
model.py.
"""

import dataclasses
import math
from collections import Counter

import jax

from gpt2_jax import lora
from gpt2_jax.attention import QUERY_BLOCK
from gpt2_jax.config import Config
from gpt2_jax.model import GPT2, model_of_shapes, num_parameters
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.topology.chips import NETWORK, Topology
from gpt2_jax.topology.hlo import Collective
from gpt2_jax.training.flops import flops_per_token
from gpt2_jax.training.selection import split


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Of a training step, or of decoding one token a row.

    Attributes:
      model_flops: of all devices, as MFU counts them: attention unmasked, nothing twice.
      flops: those that are run at least: what is recomputed counts, what a masked kernel leaves out does not.
      seconds: {"compute", "memory", "interconnect", "network"}: at least, of each resource.
      sent: bytes that a device sends {"interconnect", "network"}, at least.
    """

    model_flops: float
    flops: float
    seconds: dict[str, float]
    sent: dict[str, float]

    @property
    def limit(self) -> str:
        """The resource that takes longest."""
        return max(self.seconds, key=self.seconds.get)

    @property
    def step_seconds(self) -> float:
        """The longest of the times: no step takes less."""
        return self.seconds[self.limit]

    def mfu(self, peak: float) -> float:
        """The highest model FLOPs utilisation of devices that have `peak` FLOP/s together."""
        return self.model_flops / (peak * self.step_seconds)


def train_flops(config: Config, parameters: int, attention: str) -> tuple[float, float]:
    """(model FLOPs, FLOPs that are run at least) of a training step on all devices together."""
    tokens = config.training.batch_size * config.sequence_length
    shapes = model_of_shapes(config.model, stacked=True)
    if config.lora.rank:
        shapes = jax.eval_shape(lambda key: lora.attach(GPT2(config.model, key), config.lora, key), jax.random.key(0))
    trained = num_parameters(split(shapes, config.selection)[0])
    model = flops_per_token(config.model, parameters, config.sequence_length, frozen=parameters - trained)
    scores = 4 * config.model.n_layer * config.model.n_embd * config.sequence_length  # forward, both products
    again, scores_again = recomputed(config.model)
    # Splash and cuDNN skip blocks of keys that no query sees, nearly half of them, and XLA's larger blocks fewer.
    blocks = math.ceil(config.sequence_length / QUERY_BLOCK)
    unmasked = (blocks + 1) / (2 * blocks) if attention == "xla" else 0.5
    return tokens * model, tokens * (model - 3 * scores + again + (3 + scores_again) * scores * unmasked)


def recomputed(config: GPT2Config) -> tuple[float, float]:
    """FLOPs a token that the backward pass repeats: (of matrix products, in forward passes of attention).

    Of `remat="full"` all of a block but `mlp.c_proj`, whose result no gradient needs. The other policies keep the
    results of attention; the scores that each engine makes again for its gradient are not counted. A policy that is not
    known here repeats nothing, so that the bound stays one.
    """
    C, inner = config.n_embd, config.n_inner or 4 * config.n_embd
    blocks = 2 * config.n_layer * (4 * C * C + C * inner)
    return {"full": (blocks, 1), "named": (blocks, 0)}.get(config.remat, (0, 0))


def decode_flops(config: GPT2Config, parameters: int, batch_size: int) -> float:
    """FLOPs of one token a row, its cache half full: 2 N, N without the position table, and 4 L C T."""
    matrices = parameters - config.n_positions * config.n_embd
    return batch_size * (2 * matrices + 4 * config.n_layer * config.n_embd * config.n_positions / 2)


def decode_traffic(config: GPT2Config, parameters: int, batch_size: int) -> float:
    """Bytes of HBM that a token of each row reads at least: the matrices, and half a cache a row, in `config.dtype`."""
    size = 2 if config.dtype == "bfloat16" else 4
    cache = 2 * config.n_layer * config.n_embd * config.n_positions / 2
    return size * (parameters - config.n_positions * config.n_embd + batch_size * cache)


def train_traffic(memory: dict[str, int]) -> float:
    """Bytes of HBM that a training step moves on a device at least.

    Each argument is read and each output written once, and all else that exists at the peak is written and read.
    """
    fresh = memory["outputs"] - memory["reused"]
    others = max(0, memory["peak"] - memory["arguments"] - fresh)
    return memory["arguments"] + memory["outputs"] + 2 * others


def sent_bytes(collectives: list[Collective], slice_of: list[int]) -> dict[str, float]:
    """{"interconnect", "network"}: what a device sends at least to others of its slice, and to other slices.

    Of n devices each has a part of the array, or comes to have it: gathering or scattering R bytes sends (n - 1) / n R,
    an all-reduce does both, an all-to-all sends (n - 1) / n of what a device has.
    """
    sent = Counter(interconnect=0.0, network=0.0)
    for c in collectives:
        if c.between_slices:
            again = 2 * (c.group_size - 1) / c.group_size if c.kind == "all-reduce" else 1.0
            sent["network"] += again * c.executions * c.bytes
            continue
        slices = len({slice_of[device] for device in c.groups[0]})
        within = c.group_size // slices
        times = {"all-reduce": 2.0}.get(c.kind, 1.0) * c.executions * c.bytes
        if c.kind == "collective-permute":
            sent["network" if slices > 1 else "interconnect"] += times
        else:
            sent["interconnect"] += times * (within - 1) / within
            sent["network"] += times / within * (slices - 1) / slices
    return dict(sent)


def bound(
    topology: Topology, devices: int, flops: tuple[float, float], traffic: float, sent: dict[str, float]
) -> Bounds:
    """The times that follow.

    Args:
      topology: where.
      devices: that share the work.
      flops: (model, run at least), of all devices together.
      traffic: of each device's HBM, bytes.
      sent: of each device, see `sent_bytes`.
    """
    chip = topology.chip
    seconds = {
        "compute": flops[1] / (devices * chip.peak),
        "memory": traffic / chip.bandwidth,
        "interconnect": sent["interconnect"] / (chip.link * topology.links) if sent["interconnect"] else 0.0,
        "network": sent["network"] / NETWORK,
    }
    return Bounds(*flops, seconds, sent)

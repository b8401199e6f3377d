"""Several sources in one run: which of them each window comes from, by weights that may change at a step.

Windows are dealt in cycles. Within one, each source has its exact share (largest remainders where windows cannot be
cut) in an order shuffled by the seed, so a source's share is met at every moment of a run, and not by chance.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from gpt2_jax.errors import InputError

LONGEST_CYCLE = 1024  # windows


@dataclasses.dataclass(frozen=True)
class Phase:
    """Windows `start` and after, until the next phase.

    Attributes:
      start: number of its first window in the run.
      used: windows of each source before it.
      shares: windows of each source in one cycle.
    """

    start: int
    used: tuple[int, ...]
    shares: tuple[int, ...]

    @property
    def cycle(self) -> int:
        """Windows after which the shares begin again."""
        return sum(self.shares)


class Mixture:
    """Where window i of a run comes from: a function of (seed, i) alone, whose cost does not grow with i.

    Args:
      names: of the sources, in the order that `locate` counts them in.
      reweighing: `[(first step, {name: weight})]` as of `DataConfig.reweighing`: rising steps from 0. A source that an
        entry leaves out rests until another names it.
      seed: of the order within each cycle.
      batch_size: windows of a step.

    Raises:
      InputError: a weight too small for one window in `LONGEST_CYCLE`.
    """

    def __init__(
        self,
        names: Sequence[str],
        reweighing: Sequence[tuple[int, Mapping[str, float]]],
        *,
        seed: int,
        batch_size: int,
    ):
        self.names = tuple(names)
        self.seed = seed
        self._phases: list[Phase] = []
        used = (0,) * len(self.names)
        for step, weights in reweighing:
            if self._phases:
                used = tuple(self._used_before(step * batch_size).tolist())
            shares = _shares([weights.get(name, 0.0) for name in self.names], self.names)
            self._phases.append(Phase(step * batch_size, used, shares))
        self._starts = np.array([phase.start for phase in self._phases])
        self._lengths = np.array([phase.cycle for phase in self._phases])
        self._cycle = functools.lru_cache(maxsize=64)(self._deal)

    def locate(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows of the run [N] -> (source, number of the window within that source), int64 [N] each.

        Each source's windows are 0, 1, 2, ... in the order of the run.
        """
        phases = np.searchsorted(self._starts, windows, side="right") - 1
        cycles, places = np.divmod(windows - self._starts[phases], self._lengths[phases])
        sources, numbers = np.empty(len(windows), np.int64), np.empty(len(windows), np.int64)
        for at in set(zip(phases.tolist(), cycles.tolist())):
            rows = (phases == at[0]) & (cycles == at[1])
            order, numbered = self._cycle(*at)
            sources[rows], numbers[rows] = order[places[rows]], numbered[places[rows]]
        return sources, numbers

    def _deal(self, phase: int, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each window of a cycle and its number within that source."""
        shares = np.array(self._phases[phase].shares)
        # The raw bits: numpy promises that they stay the same in its later versions, and not what is drawn from them.
        bits = np.random.PCG64([self.seed, phase, cycle]).random_raw(shares.sum())
        order = np.repeat(np.arange(len(shares)), shares)[np.argsort(bits, kind="stable")]
        numbers = np.empty_like(order)
        for source, used in enumerate(self._phases[phase].used):
            mine = order == source
            numbers[mine] = used + cycle * shares[source] + np.arange(shares[source])
        return order, numbers

    def _used_before(self, window: int) -> np.ndarray:
        """Windows of each source before `window`, which is not before the last phase known yet."""
        phase = self._phases[-1]
        cycles, rest = divmod(window - phase.start, phase.cycle)
        order, _ = self._deal(len(self._phases) - 1, cycles)
        return (
            np.array(phase.used)
            + cycles * np.array(phase.shares)
            + np.bincount(order[:rest], minlength=len(phase.used))
        )


def _shares(weights: list[float], names: Sequence[str]) -> tuple[int, ...]:
    """Windows of each source in a cycle: the longest one that weights like 3 : 1 or 0.7 : 0.3 divide exactly."""
    exact = [Fraction(repr(weight)) for weight in weights]
    exact = [weight / sum(exact) for weight in exact]
    unit = math.lcm(*(weight.denominator for weight in exact))
    cycle = LONGEST_CYCLE // unit * unit or LONGEST_CYCLE
    shares = [math.floor(weight * cycle) for weight in exact]
    remainders = sorted(range(len(exact)), key=lambda i: shares[i] - exact[i] * cycle)
    for i in remainders[: cycle - sum(shares)]:
        shares[i] += 1
    for name, weight, share in zip(names, exact, shares):
        if weight and not share:
            raise InputError(
                f"the weight of {name} is {float(weight):.2g} of all, less than one window in {cycle}; raise it in"
                f" --config.data.source or --config.data.reweigh to {1 / cycle:.2g} or more, or leave the source out"
            )
    return tuple(shares)

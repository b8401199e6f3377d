"""The guard of a training step: an update whose loss or gradient norm is not finite, or far too large, is not made.

It is the first rung of the ladder of bad numbers; ladder.py has those that the host climbs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt2_jax.config import GuardConfig


class GuardState(NamedTuple):
    """What the guard knows of a run: small, on every device, and in every checkpoint.

    No shape depends on an option, so that all of them may change when a run goes on.
    """

    mean: jax.Array  # float32 [2], of the loss and of the gradient norm, see `judge`
    variance: jax.Array  # float32 [2]
    count: jax.Array  # int32 [], steps that mean and variance are of, however little the oldest weigh
    row: jax.Array  # int32 [], steps skipped since the last update or roll-back
    skipped: jax.Array  # int32 [], steps skipped in the whole run
    rollbacks: jax.Array  # int32 [], in the whole run
    missed: jax.Array  # int32 [], steps that are in no update of these parameters: skipped, or jumped over
    good: jax.Array  # int32 [], no later checkpoint may be rolled back to: that of the last update

    @classmethod
    def fresh(cls, step: int = 0) -> "GuardState":
        """Of a run whose `step` is the first that is watched."""
        zero = jnp.zeros((), jnp.int32)
        return cls(jnp.zeros(2), jnp.zeros(2), *[zero] * 5, jnp.asarray(step, jnp.int32))


def judge(
    guard: GuardState,
    step: jax.Array,
    loss: jax.Array,
    grad_norm: jax.Array,
    config: GuardConfig,
    shifts: Sequence[int] = (),
) -> tuple[jax.Array, GuardState]:
    """(whether the update of `step` is to be made: bool [], what the guard knows after it).

    With d the distance of a value from the mean and a = 1 / min(count, window), count with this step, the mean becomes
    m + a d and the variance (1 - a) (v + a d^2): up to `window` steps exactly theirs (Welford, 1962), from then on
    weighted by 1 - 1 / window to the power of their age. A step that is skipped is not in them.

    Args:
      shifts: steps from which on the data are others, so that what was usual before says nothing.
    """
    values = jnp.stack([loss, grad_norm]).astype(jnp.float32)
    count = jnp.where(jnp.isin(step, jnp.array(shifts)), 0, guard.count) if shifts else guard.count
    share = 1 / jnp.minimum(count + 1, config.window)
    away = values - guard.mean
    mean = guard.mean + share * away
    variance = (1 - share) * (guard.variance + share * away**2)
    # A value whose square is not finite would blind the guard for good.
    finite = jnp.isfinite(mean).all() & jnp.isfinite(variance).all()
    far = (count >= config.window) & (away > config.sigmas * jnp.sqrt(guard.variance)).any()
    # Of a full row the host knows when the next step runs: that one must not count as good before the run goes back.
    good = finite & ~far & (guard.row < config.skips)
    after = guard._replace(
        mean=jnp.where(good, mean, guard.mean),
        variance=jnp.where(good, variance, guard.variance),
        count=count + good,
        row=jnp.where(good, 0, guard.row + 1),
        skipped=guard.skipped + ~good,
        missed=guard.missed + ~good,
        good=jnp.where(good, step + 1, guard.good),
    )
    return good, after


def unwatched(guard: GuardState, step: jax.Array, *_: Any) -> tuple[jax.Array, GuardState]:
    """In place of `judge` while the guard is off: every update is made, and nothing is known of how large numbers are.

    XLA cannot tell that steps are never below 0, so it compiles the update as with the guard: to the same bits.
    """
    zero = jnp.zeros_like(guard.count)
    return step >= 0, guard._replace(count=zero, row=zero, good=step + 1)


def rolled_back(now: GuardState, then: GuardState, step: jax.Array, to: jax.Array, shifted: jax.Array) -> GuardState:
    """What the guard knows after `step` steps, when parameters are again those of the checkpoint of step `to`.

    The next roll-back must go further back, unless there is an update before it.

    Args:
      now: as it is.
      then: as it was saved.
      shifted: bool [], whether the data have changed between the two, see `judge`.
    """
    return then._replace(
        count=jnp.where(shifted, 0, then.count),
        row=jnp.zeros_like(now.row),
        skipped=now.skipped,
        rollbacks=now.rollbacks + 1,
        missed=then.missed + step - to,
        good=to - 1,
    )

"""What the processes of a run tell each other beside their devices: signs of life, and that the run is over.

It goes through the key-value store of JAX's coordination service, which process 0 holds: the devices wait for each
other, so where one process is gone or stuck nothing else can be said by them.
"""

import dataclasses
import itertools
import json
import socket
import threading
import time
from typing import Any

import jax

TEMPORARY = 75  # exit code of a run that another start may mend: EX_TEMPFAIL of sysexits.h
LATE = 3.5  # intervals without a sign, after which a process is missed where something is wrong already

_runs = itertools.count()  # of this process; all processes count alike


@dataclasses.dataclass(frozen=True)
class End:
    """That a run is over for all its processes.

    Attributes:
      code: the exit code.
      message: why, naming the process that it began with.
      stacks: whether it helps to see where each process stands.
      patience: seconds that a process has to end by itself.
    """

    code: int
    message: str
    stacks: bool = False
    patience: float = 0.0


@dataclasses.dataclass(frozen=True)
class Sign:
    """A sign of life of a process.

    Attributes:
      at: when it came, by this process's clock.
      number: of the sign; what is read again is no new one.
      host: where the process is.
      doing: one of `accounting.ACTIVITIES` or "preparing"; "" where it is done.
      step: steps that it has begun.
    """

    at: float
    number: int
    host: str
    doing: str
    step: int = 0


def store() -> Any:
    """JAX's client of the key-value store. It has no public name; Orbax takes it from here, too."""
    from jax._src import distributed

    return distributed.global_state.client


def are_several() -> bool:
    """Whether the run has several processes; asked in one that is alone, it does not start JAX's devices."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


class Peers:
    """The processes of a run, as this one hears of them.

    Args:
      heartbeat_seconds: after which a process that is not heard of is lost.

    Attributes:
      index, count: which process this is, of how many.
      interval: seconds between two signs.
      answers: how often process 0 has answered.
      end: what ends the run, once a process has declared it.
      curious: whether this process wants the signs of all; process 0 always does.
    """

    def __init__(self, heartbeat_seconds: float):
        self.index, self.count = jax.process_index(), jax.process_count()
        self.interval = min(2.0, heartbeat_seconds / 5)
        self.answers = 0
        self.end: End | None = None
        self.curious = self.index == 0
        self._heartbeat, self._heard = heartbeat_seconds, time.monotonic()
        self._signs = self._expected()
        self._numbers, self._names = itertools.count(), f"gpt2_jax/{next(_runs)}"
        self._one = threading.Lock()

    def tell(self, doing: str, step: int = 0) -> None:
        """Gives a sign of life."""
        with self._one:  # what is told last stays
            values = [next(self._numbers), socket.gethostname(), doing, step]
            store().key_value_set(f"{self._names}/signs/{self.index}", json.dumps(values), allow_overwrite=True)

    def hear(self) -> None:
        """Reads what the others have told, and ends the run where one of them is lost."""
        now = time.monotonic()
        if now - self._heard > LATE * self.interval:  # this process was stopped, and what it knows is old
            self._signs = self._expected()
        if self.curious:
            self._read_signs()
            if lost := self.silent(self._heartbeat):
                self.declare(end_of_lost(lost, self._heartbeat))
        if found := store().key_value_dir_get(f"{self._names}/end/"):
            self.end = End(**json.loads(found[0][1]))
        self._heard = time.monotonic()
        self.answers += 1

    def declare(self, end: End) -> None:
        """Ends the run for all processes, unless another process has."""
        try:
            store().key_value_set(f"{self._names}/end/it", json.dumps(dataclasses.asdict(end)))
        except jax.errors.JaxRuntimeError:
            return  # there is one, or process 0 is gone and with it all that were listening
        self.end = end

    def silent(self, seconds: float | None = None) -> dict[int, Sign]:
        """The last signs of processes from which none has come for so long, by default for `LATE` intervals."""
        since = time.monotonic() - (LATE * self.interval if seconds is None else seconds)
        return {i: sign for i, sign in self._signs.items() if sign.doing and sign.at < since and i != self.index}

    def signs(self) -> dict[int, Sign]:
        """The last signs of all processes that are not done."""
        return {i: sign for i, sign in sorted(self._signs.items()) if sign.doing}

    def _expected(self) -> dict[int, Sign]:
        return {i: Sign(time.monotonic(), -1, "an unknown host", "preparing") for i in range(self.count)}

    def _read_signs(self) -> None:
        signs = dict(self._signs)
        for key, text in store().key_value_dir_get(f"{self._names}/signs/"):
            index, values = int(key.rpartition("/")[2]), json.loads(text)
            if signs[index].number != values[0]:
                signs[index] = Sign(time.monotonic(), *values)
        self._signs = signs


def end_of_lost(lost: dict[int, Sign], seconds: float) -> End:
    """The end of a run some of whose processes are not heard of any more."""
    named = "; ".join(f"process {i} on {sign.host}, last at step {sign.step}" for i, sign in lost.items())
    return End(
        TEMPORARY,
        f"nothing was heard for {seconds:.0f} seconds of {named}: killed, stopped, or its machine or network is gone",
    )

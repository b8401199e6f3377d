"""What a run writes down: TensorBoard and JSONL through clu's writers, and model FLOPs utilisation.

Importing this imports TensorFlow (by clu's TensorBoard writer).
"""

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gpt2_jax import json_files
from gpt2_jax.config import Config
from gpt2_jax.data.tensorflow import tf, without_keras
from gpt2_jax.errors import one_line
from gpt2_jax.training.accounting import Clock
from gpt2_jax.training.flops import flops_per_token, peak_flops

with without_keras():
    from clu import metric_writers
    from clu.metric_writers import MetricWriter

FAILURES = (OSError, tf.errors.OpError)  # of writers
MFU_FORMULA = (
    "(6 N + 12 L C T) x tokens/s / (devices x bfloat16 peak), N parameters without wpe (PaLM, appendix B), 4 in place "
    "of 6 where they are frozen"
)


class JsonlWriter(MetricWriter):
    """One JSON object a line with `step` and what was written: numbers as numbers, texts as strings.

    Opened at a step, it first drops the lines of later steps, which a resumed run is about to write again, and what is
    no such line: one that was cut off while it was written, or damaged.
    """

    def __init__(self, path: Path, *, from_step: int):
        if path.exists():
            temporary = path.with_suffix(".tmp")
            with temporary.open("wb") as kept:
                for line, values in json_files.lines(path):
                    if type(step := values.get("step")) is int and step <= from_step:
                        kept.write(line.rstrip(b"\n") + b"\n")
            os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers as a line."""
        self._write(step, {name: np.asarray(value).item() for name, value in scalars.items()})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts as a line."""
        self._write(step, texts)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the options of a run as a line of step 0."""
        self._write(0, {"hparams": dict(hparams)})

    def _only_tensorboard(self, *_: Any, **__: Any) -> None:
        """Images, sound and histograms have no place in a line of JSON; TensorBoard has them."""

    write_summaries = write_images = write_videos = write_audios = _only_tensorboard
    write_histograms = write_pointcloud = _only_tensorboard

    def flush(self) -> None:
        """Hands to the system what was written."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Tolerant:
    """A `MetricWriter` that may fail, on a full disk say: that is told once, and what it did not write is lost.

    Args:
      what: the name of what is written.
      make: opens the writer, again after each failure.
      tell: is given a line when writing fails, and when it works again.
    """

    def __init__(self, what: str, make: Callable[[], MetricWriter], tell: Callable[[str], None]):
        self._what, self._make, self._tell = what, make, tell
        self._writer: MetricWriter | None = None
        self._failing = False
        self.flush()  # tells at once

    def __getattr__(self, method: str) -> Callable[..., None]:
        return functools.partial(self._call, method)

    def _call(self, method: str, *args: Any, **kwargs: Any) -> None:
        if method == "close" and self._writer is None:
            return
        try:
            if self._writer is None:
                self._writer = self._make()
            getattr(self._writer, method)(*args, **kwargs)
        except FAILURES as error:
            if not self._failing:
                self._tell(f"{self._what} cannot be written ({one_line(error)}): training goes on without")
            self._failing = True
            if self._writer is not None:
                with contextlib.suppress(*FAILURES):  # told already
                    self._writer.close()
            self._writer = None
        else:
            if self._failing:
                self._tell(f"{self._what} can be written again")
            self._failing = False


@contextlib.contextmanager
def open_writer(workdir: Path, *, from_step: int, tell: Callable[[str], None]) -> Iterator[MetricWriter]:
    """Writes to `<workdir>/tensorboard` and `<workdir>/metrics.jsonl`; on processes but the first, to nowhere.

    Args:
      workdir: of the run.
      from_step: where the run goes on, see `JsonlWriter`.
      tell: is given a line when one of them cannot be written, which stops nothing.
    """
    opened = False

    def jsonl() -> JsonlWriter:
        nonlocal opened
        writer = JsonlWriter(workdir / "metrics.jsonl", from_step=sys.maxsize if opened else from_step)
        opened = True
        return writer

    tensorboard = lambda: metric_writers.SummaryWriter(str(workdir / "tensorboard"))
    writers = []
    if jax.process_index() == 0:
        writers = [
            Tolerant(str(workdir / "tensorboard"), tensorboard, tell),
            Tolerant(str(workdir / "metrics.jsonl"), jsonl, tell),
        ]
    writer = metric_writers.MultiWriter(writers)
    try:
        yield writer
    finally:
        writer.close()


class Meter:
    """Speed since it was last read, with the time spent on compilation, evaluation and checkpoints left out."""

    def __init__(self, config: Config, parameters: int, mesh: Mesh, clock: Clock, *, frozen: int = 0):
        self._tokens_per_step = config.training.batch_size * config.sequence_length
        # What reads images has other FLOPs, which the formula does not count.
        peak = None if config.image.source else peak_flops(mesh.devices.flat[0])
        self._flops_per_token = flops_per_token(config.model, parameters, config.sequence_length, frozen=frozen)
        self._peak = None if peak is None else peak * mesh.size
        self._clock = clock
        self._steps, self._seconds, self._parts = 0, 0.0, dict(clock.seconds)
        self.restart()

    def restart(self) -> None:
        """Starts the clock anew, after something that is not training."""
        self._since = time.perf_counter() - self._clock.seconds["compile"]

    def waiting(self, get: Callable[[], Any], on: str = "data_wait") -> Any:
        """`get()`, its time counted as waiting for data, or `on` something else."""
        with self._clock.on(on):
            return get()

    def count_step(self) -> None:
        """Counts a step that is done; compiling is not of its time."""
        now = time.perf_counter() - self._clock.seconds["compile"]
        self._seconds += now - self._since
        self._since = now
        self._steps += 1

    def read(self) -> dict[str, float]:
        """tokens_per_second, step_seconds, on a known device mfu, and what parts of the time the host spent how.

        These are data_wait, dispatch and device_wait, see `Clock`; the rest is the loop's own.
        """
        speed = self._steps * self._tokens_per_step / self._seconds
        values = {"tokens_per_second": speed, "step_seconds": self._seconds / self._steps}
        now = dict(self._clock.seconds)
        for name in ("data_wait", "dispatch", "device_wait"):
            values[name] = min(1.0, (now[name] - self._parts[name]) / self._seconds)
        if self._peak is not None:
            values["mfu"] = speed * self._flops_per_token / self._peak
        self._steps, self._seconds, self._parts = 0, 0.0, now
        return values

"""Preparing by one of the processes of a run, while the others wait for its tokens."""

import json
import os
import threading
import time
from pathlib import Path

from absl import logging

from gpt2_jax import json_files
from gpt2_jax.data.layout import Progress
from gpt2_jax.data.manifest import make_folder, write_file
from gpt2_jax.data.options import DataConfig
from gpt2_jax.data.prepare import prepare, subfolder
from gpt2_jax.data.prepared import Prepared
from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer import Tokenizer

BEAT = 2.0  # seconds between signs of life
PATIENCE = 120.0  # seconds without one, after which the others stop
SIGN = "preparing.json"


def prepare_together(
    config: DataConfig,
    directory: str | Path,
    process_index: int,
    process_count: int,
    *,
    start: Tokenizer | None = None,
    progress: Progress = logging.info,
) -> dict[str, Prepared]:
    """`prepare` by process 0; the others wait until it is done, and stop when it fails or falls silent.

    Args:
      config, directory, start, progress: as of `prepare`; all processes see the same directory.
      process_index, process_count: which of the run's processes this is, of how many.

    Raises:
      InputError: as `prepare`, and in the others with what stopped process 0, or that it was not heard of any more.
    """
    directory = Path(directory)
    manifests = [directory / subfolder(config, name) / "manifest.json" for name in config.weights]
    if process_count > 1 and not all(path.exists() for path in manifests):
        if process_index == 0:
            return _prepare_watched(config, directory, start, progress)
        _wait(directory, manifests)
    return prepare(config, directory, start=start, progress=progress)


def _prepare_watched(
    config: DataConfig, directory: Path, start: Tokenizer | None, progress: Progress
) -> dict[str, Prepared]:
    """`prepare` with signs of life in a file, whose last one says what went wrong."""
    make_folder(directory)
    stop = threading.Event()

    def beat() -> None:
        while True:
            _sign(directory, None)
            if stop.wait(BEAT):
                return

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        found = prepare(config, directory, start=start, progress=progress)
    except BaseException as error:
        stop.set()
        beating.join()
        _sign(directory, str(error) or type(error).__name__)
        raise
    stop.set()
    beating.join()
    (directory / SIGN).unlink(missing_ok=True)
    return found


def _sign(directory: Path, error: str | None) -> None:
    sign = {"process": os.getpid(), "nanoseconds": time.time_ns(), "error": error}
    try:
        write_file(directory, SIGN, json.dumps(sign).encode())
    except InputError as full:  # of the disk: the tokens find it full, too, and say so
        logging.warning("%s", full)


def _wait(directory: Path, manifests: list[Path]) -> None:
    """Returns when all manifests are there. Clocks of machines differ: only a sign that changes is a new one."""
    first = last = _read(directory)
    heard = time.monotonic()
    while not all(path.exists() for path in manifests):
        sign = _read(directory)
        if sign != last:
            last, heard = sign, time.monotonic()
        error = last.get("error")
        silent = time.monotonic() - heard > PATIENCE
        if error and (last != first or silent):
            raise InputError(f"process 0 of the run could not prepare {directory}: {error}")
        if silent:
            raise InputError(
                f"process 0 of the run, which prepares {directory}, was not heard of for {PATIENCE:.0f} seconds; see "
                "its log, and that all processes have the same data.prepared or workdir"
            )
        time.sleep(min(BEAT, PATIENCE) / 4)


def _read(directory: Path) -> dict:
    try:
        return json_files.parse(json_files.read_bytes(directory / SIGN))
    except (FileNotFoundError, ValueError):
        return {}

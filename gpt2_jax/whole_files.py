"""Files that are there as a whole, or as they were before."""

import os
from pathlib import Path


def write(file: Path, data: bytes) -> None:
    """Writes all of `data`, on disk when this returns, or leaves what was there.

    Raises:
      OSError: the disk refuses.
    """
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.unfinished")
    try:
        with open(unfinished, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, file)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise

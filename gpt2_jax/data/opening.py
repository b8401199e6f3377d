"""Files as training reads them: compressed text and parquet opened, bytes decoded, and what goes wrong explained."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gpt2_jax.errors import InputError, one_line


def open_compressed(path: Path) -> BinaryIO:
    """A file as bytes, uncompressed by its suffix."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path, "rb")
        case ".zst":
            pa, _ = pyarrow(path)  # not zstandard, which takes a file cut short for its end
            return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
        case _:
            return open(path, "rb")


class explained:
    """Turns what reading `path` raises into an `InputError`."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        damaged = isinstance(error, (EOFError, zlib.error))
        if isinstance(error, OSError) or damaged:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise InputError(f"{self.path} cannot be read ({reason}); check it and its permissions") from None


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[tuple[Any, Any]]:
    """A `pyarrow.parquet.ParquetFile`, and pyarrow; what reading it raises becomes an `InputError`."""
    pa, pq = pyarrow(path)
    try:
        with explained(path), pq.ParquetFile(path) as file:
            yield file, pa
    except pa.ArrowException as error:
        raise InputError(f"{path} is not a parquet file that can be read ({one_line(error)})") from None


def pyarrow(path: Path) -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"reading {path} needs pyarrow; pip install 'gpt2_jax[data]'") from None
    return pa, pq


def decode(raw: bytes, errors: str, where: str) -> str | None:
    """UTF-8 text of `raw`; None for what `errors` says to skip."""
    try:
        return raw.decode("utf-8", "replace" if errors == "replace" else "strict")
    except UnicodeDecodeError as error:
        if errors == "skip":
            return None
        raise InputError(
            f"{where} is not UTF-8: byte 0x{raw[error.start]:02x} at offset {error.start}; convert it, or use"
            " --config.data.decode_errors=replace or skip"
        ) from None


def records(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a `pyarrow.RecordBatch`, strings as bytes, whose encoding is checked later."""
    import pyarrow as pa

    columns = {}
    for name, column in zip(batch.schema.names, batch.columns):
        column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        columns[name] = (column.cast(pa.large_binary()) if text else column).to_pylist()
    for values in zip(*columns.values()):
        yield dict(zip(columns, values))


def some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

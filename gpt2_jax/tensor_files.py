"""Files of tensors read one tensor at a time, and written so: safetensors, and the msgpack of flax.serialization.

Both readers look at the headers alone, and check them against the size of the file before anything is allocated. No
pickle is ever opened.
"""

import dataclasses
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import msgpack
import numpy as np

from gpt2_jax import json_files
from gpt2_jax.errors import InputError, one_line, shown

SAFETENSORS_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
TYPES = {np.dtype(kind).name: np.dtype(kind) for kind in SAFETENSORS_TYPES.values()}
# GPT-2 XL has 580 tensors in a header of 61 kB. A hostile file is not let to ask for more memory than these need.
LARGEST_HEADER = json_files.LARGEST
MOST_TENSORS, LONGEST_NAME, DEEPEST, MOST_AXES = 100_000, 1024, 32, 8
NDARRAY = 1  # flax's msgpack extension for an array: [shape, dtype name, bytes in C order]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor that lies in a file: C order, little endian, `offset` bytes from the start."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    def read(self) -> np.ndarray:
        """The numbers, float32; of `dtype` float32, or float16 and bfloat16, which are widened exactly.

        Raises:
          InputError: the file cannot be read any more, or a number is not finite.
        """
        size = math.prod(self.shape)
        try:
            # Read, not mapped: mapped pages would count as this process's memory beside the tensor made of them.
            array = np.fromfile(self.file, TYPES[self.dtype], size, offset=self.offset)
        except OSError as error:
            raise InputError(f"{self.file} cannot be read ({error.strerror}); check it and its permissions") from None
        if len(array) != size:
            raise InputError(f"{self.file} became shorter while {self.name} was read; fetch it again")
        array = array.reshape(self.shape).astype(np.float32, copy=False)
        self._check_finite(array)
        return array

    def _check_finite(self, array: np.ndarray) -> None:
        flat = array.reshape(-1)
        with np.errstate(all="ignore"):
            # The sum of squares is never finite where a number is not: one pass at the speed of memory, and no array.
            if np.isfinite(np.dot(flat, flat)) or (finite := np.isfinite(array)).all():
                return
        first = np.unravel_index(np.argmin(finite), array.shape)
        raise InputError(
            f"{self.file} has {array.size - np.count_nonzero(finite):,} numbers in {self.name} that are not "
            f"finite, the first {array[first]} at {[int(i) for i in first]}; no model computes with them: fetch the "
            "file again, or take a checkpoint from before the training diverged"
        )


def read_safetensors(file: Path) -> dict[str, Tensor]:
    """What a `.safetensors` file holds, by name (https://github.com/huggingface/safetensors#format).

    Raises:
      InputError: not such a file, cut short, or with tensors outside of it or over each other.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(LARGEST_HEADER, size - 8):
            raise InputError(
                f"{file} is no safetensors file, or is cut short: it has {size:,} bytes and a header of {length:,}; "
                "fetch it again"
            )
        try:
            header = json_files.parse(stream.read(length))
            entries = [(name, *_entry(name, entry)) for name, entry in header.items() if name != "__metadata__"]
        except ValueError as error:
            reason = one_line(error)
            raise InputError(f"{file} has a header that is not safetensors' ({reason}); fetch it again") from None
    end = 0
    for name, dtype, shape, start, stop in sorted(entries, key=lambda entry: entry[3:]):
        item = np.dtype(SAFETENSORS_TYPES[dtype]).itemsize if dtype in SAFETENSORS_TYPES else None
        if start != end or (item and stop - start != item * math.prod(shape)):
            raise InputError(
                f"{file} is damaged: {shown(name)} lies at bytes {start:,} to {stop:,}, its shape is {shape}; fetch it "
                "again"
            )
        end = stop
    if 8 + length + end != size:
        raise InputError(f"{file} has {size:,} bytes and its tensors need {8 + length + end:,}; fetch it again")
    return {
        name: Tensor(file, name, shape, _type_name(dtype), 8 + length + start)
        for name, dtype, shape, start, _ in entries
    }


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{shown(name)} is {shown(entry)}, without dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    _check_names(name, dtype)
    right = _are_sizes(shape) and len(shape) <= MOST_AXES and _are_sizes(offsets)
    if not right or len(offsets) != 2 or offsets[1] < offsets[0]:
        raise ValueError(f"{shown(name)} is of {dtype}, shape {shown(shape)}, offsets {shown(offsets)}")
    return dtype, tuple(shape), *offsets


def _check_names(name: str, dtype: Any) -> None:
    """Errors show both, in one line."""
    if not name.isprintable() or len(name) > LONGEST_NAME:
        raise ValueError(f"the name {shown(name)} is too long, or cannot be printed")
    if not isinstance(dtype, str) or not dtype.isidentifier() or len(dtype) > LONGEST_NAME:
        raise ValueError(f"{shown(name)} is of type {shown(dtype)}")


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _type_name(dtype: str) -> str:
    return np.dtype(SAFETENSORS_TYPES[dtype]).name if dtype in SAFETENSORS_TYPES else dtype


def write_safetensors(file: Path, tensors: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]) -> None:
    """Writes float32 tensors of these names and shapes, one `read` at a time; the bytes that safetensors writes."""
    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        stop = start + 4 * math.prod(tensors[name])
        header[name] = {"dtype": "F32", "shape": list(tensors[name]), "data_offsets": [start, stop]}
        start = stop
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with writing(file) as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in sorted(tensors):
            stream.write(memoryview(np.ascontiguousarray(read(name), "<f4")).cast("B"))


def read_msgpack(file: Path) -> dict[str, Tensor]:
    """What a file of `flax.serialization.to_bytes` holds, by path: "transformer/wte/embedding".

    Raises:
      InputError: not such a file, or cut short.
    """
    with file.open("rb") as stream:
        try:
            found = {}
            for path, tensor in _walk(stream, file, "", 0):
                if path in found:
                    raise ValueError(f"{path} is there twice")
                if len(found) == MOST_TENSORS:
                    raise ValueError(f"it has more than {MOST_TENSORS:,} entries")
                found[path] = tensor
            if stream.read(1):
                raise ValueError("there is more after its end")
        except (ValueError, msgpack.exceptions.UnpackException) as error:
            reason = one_line(error)  # names from the file may break lines
            raise InputError(
                f"{file} is no msgpack file of Flax parameters, or is cut short ({reason}); fetch it again"
            ) from None
    return found


def _walk(stream: BinaryIO, file: Path, path: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """The arrays of one msgpack value; https://github.com/msgpack/msgpack/blob/master/spec.md has the first bytes."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST}")
    kind = _byte(stream)
    if 0x80 <= kind <= 0x8F or kind in (0xDE, 0xDF):
        entries = kind & 0x0F if kind <= 0x8F else _number(stream, {0xDE: 2, 0xDF: 4}[kind])
        for _ in range(entries):
            key = _text(stream)
            if key == "__msgpack_chunked_array__":
                raise ValueError(f"{path} is larger than 1 GB and cut in pieces")
            yield from _walk(stream, file, f"{path}/{key}" if path else key, depth + 1)
    elif kind in (0xC7, 0xC8, 0xC9) or 0xD4 <= kind <= 0xD8:
        length = 1 << (kind - 0xD4) if kind >= 0xD4 else _number(stream, {0xC7: 1, 0xC8: 2, 0xC9: 4}[kind])
        if _byte(stream) != NDARRAY:
            raise ValueError(f"{path} is no array")
        yield path, _array(stream, file, path, length)
    else:
        raise ValueError(f"{path or 'the top'} starts with byte {kind:#x}")


def _array(stream: BinaryIO, file: Path, path: str, length: int) -> Tensor:
    start = stream.tell()
    if length > _left(stream):
        raise ValueError(f"{path} ends past the file")
    unpacker = msgpack.Unpacker(max_buffer_size=1 << 16)
    unpacker.feed(stream.read(min(length, 1 << 12)))  # the shape and the type; the numbers follow
    if unpacker.read_array_header() != 3:
        raise ValueError(f"{path} is no array")
    shape, dtype = unpacker.unpack(), unpacker.unpack()
    if not _are_sizes(shape) or len(shape) > MOST_AXES or not isinstance(dtype, str):
        raise ValueError(f"{path} is no array")
    _check_names(path.rpartition("/")[2], dtype)
    stream.seek(start + unpacker.tell())
    size = _number(stream, {0xC4: 1, 0xC5: 2, 0xC6: 4}.get(_byte(stream), 0))
    offset = stream.tell()
    if offset + size != start + length or (dtype in TYPES and size != TYPES[dtype].itemsize * math.prod(shape)):
        raise ValueError(f"{path} has {size:,} bytes for {dtype}{shape}")
    stream.seek(start + length)
    return Tensor(file, path, tuple(shape), dtype, offset)


def _byte(stream: BinaryIO) -> int:
    return _number(stream, 1)


def _number(stream: BinaryIO, size: int) -> int:
    return int.from_bytes(_exactly(stream, size), "big")


def _text(stream: BinaryIO) -> str:
    kind = _byte(stream)
    if 0xA0 <= kind <= 0xBF:
        return _exactly(stream, kind & 0x1F).decode()
    if kind not in (0xD9, 0xDA, 0xDB):
        raise ValueError(f"a key starts with byte {kind:#x}")
    length = _number(stream, {0xD9: 1, 0xDA: 2, 0xDB: 4}[kind])
    if length > LONGEST_NAME:
        raise ValueError(f"a key has {length:,} bytes, and may have {LONGEST_NAME:,}")
    return _exactly(stream, length).decode()


def _exactly(stream: BinaryIO, size: int) -> bytes:
    if size > _left(stream):  # before memory is taken for it
        raise ValueError("it ends too early")
    return stream.read(size)


def _left(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size - stream.tell()


def write_msgpack(file: Path, tensors: Iterable[str], read: Callable[[str], np.ndarray]) -> None:
    """Writes float32 tensors by path; `read` gives one at a time. The bytes of `flax.serialization.to_bytes`."""
    tree: dict[str, Any] = {}
    for path in sorted(tensors, key=lambda path: path.split("/")):
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = path
    packer = msgpack.Packer()

    def write(stream: BinaryIO, node: dict[str, Any]) -> None:
        stream.write(packer.pack_map_header(len(node)))
        for key, child in node.items():
            stream.write(packer.pack(key))
            if isinstance(child, dict):
                write(stream, child)
            else:
                array = np.ascontiguousarray(read(child), "<f4")
                payload = packer.pack((array.shape, array.dtype.name, array.tobytes()))
                stream.write(packer.pack_ext_type(NDARRAY, payload))

    with writing(file) as stream:
        write(stream, tree)


def make_folder(folder: Path) -> None:
    """Makes a folder to write in, if it is absent; raises `InputError` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"could not make the folder {folder}: {error.strerror}; give another") from None


class writing:
    """A file that appears complete or not at all: `with writing(path) as stream`.

    Raises:
      InputError: it cannot be written (no space, no permission); what was there before is untouched.
    """

    def __init__(self, file: Path):
        self.file = file
        self.partial = file.with_name(f".{file.name}.partial")

    def __enter__(self) -> BinaryIO:
        try:
            self.stream = self.partial.open("wb")
        except OSError as error:
            raise self._explained(error) from None
        return self.stream

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        try:
            self.stream.close()
            if error is None:
                os.replace(self.partial, self.file)
        except OSError as at_close:
            error = error or at_close
        self.partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise self._explained(error) from None

    def _explained(self, error: OSError) -> InputError:
        return InputError(f"could not write {self.file}: {error.strerror}; make room, or give another folder")

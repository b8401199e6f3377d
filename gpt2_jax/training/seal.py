"""The seal of a checkpoint: a manifest with the checksum of every file, written last.

A checkpoint gets its final name only when it is sealed and on disk, so that neither a process nor a machine that dies
leaves one that is only half there. `damage` tells whether it is still what was saved.
"""

import asyncio
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orbax.checkpoint._src.path.atomicity import AtomicRenameTemporaryPath

from gpt2_jax import json_files
from gpt2_jax.errors import shown

FORMAT = 2  # of checkpoints; 0 has no manifest, 0 and 1 know nothing of the guard
MANIFEST = "manifest.json"
METADATA = "_CHECKPOINT_METADATA"  # Orbax writes to it once more when the checkpoint is named
NAMED = "commit_success.txt"  # and then makes this
OF_ORBAX = ("item_handlers", "metrics", "performance_metrics", "custom_metadata")  # in its metadata, each an object


class SealedPath(AtomicRenameTemporaryPath):
    """Orbax's temporary folder of a checkpoint, sealed before it gets its final name."""

    async def finalize(self) -> None:
        """Seals a whole checkpoint, then renames it."""
        whole = Path(self.get_final()).name.isdigit()  # and not one item
        if whole:
            await asyncio.to_thread(seal, Path(self.get()))
        await super().finalize()
        if whole:
            await asyncio.to_thread(_flush_folder, Path(self.get_final()).parent)


def seal(folder: Path) -> None:
    """Writes the manifest of all files in `folder`, and returns when everything is on disk."""
    files = {str(file.relative_to(folder)): _entry(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    files.pop(METADATA, None)
    versions = {name: version(name) for name in ("gpt2_jax", "jax", "flax", "optax", "orbax-checkpoint")}
    manifest = {"format": FORMAT, "versions": versions, "files": files}
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for inner in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        _flush_folder(inner)


def format_of(folder: Path) -> int:
    """The format of the checkpoint in `folder`, which is not damaged."""
    return _format(json_files.find(folder / METADATA) or {})


def _format(metadata: dict[str, Any]) -> Any:
    return (metadata.get("custom_metadata") or {}).get("format", 0)


def damage(folder: Path, items: Iterable[str]) -> str:
    """What is wrong with the checkpoint in `folder`; "" if nothing is.

    Args:
      folder: of a step.
      items: those to look at, folders in it such as "model".
    """
    items = list(items)
    metadata = json_files.find(folder / METADATA)
    if metadata is None or not all(isinstance(metadata.get(name), dict | None) for name in OF_ORBAX):
        return f"{METADATA} is missing or cannot be read"
    if missing := [item for item in items if not (folder / item).is_dir()]:
        return f"{missing[0]} is missing"
    found = _format(metadata)
    if found == 0:  # of before there were manifests
        return f"{METADATA} tells no format, and there is a {MANIFEST}" if (folder / MANIFEST).exists() else ""
    if found not in range(FORMAT + 1):
        return f"its format is {shown(found)}, and this version of gpt2_jax reads up to {FORMAT}: use a newer one"
    wanted = (json_files.find(folder / MANIFEST) or {}).get("files")
    if not isinstance(wanted, dict) or not all(map(_is_entry, wanted, wanted.values())):
        return f"{MANIFEST} is missing or cannot be read"
    there = {path.relative_to(folder).as_posix() for item in items for path in (folder / item).rglob("*")}
    for name in sorted(there - wanted.keys()):
        if not (folder / name).is_dir():
            return f"{name} is not in {MANIFEST}"
    for name, entry in wanted.items():
        if name.split("/")[0] in items and (what := _harm(folder / name, entry)):
            return f"{name} {what}"
    return ""


def _is_entry(name: str, entry: Any) -> bool:
    """Whether it is of a file in the folder; one that leads elsewhere could make a reader wait for ever."""
    inside = ".." not in name.split("/") and not name.startswith("/") and name.isprintable()
    right = isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("sha256"), str)
    return inside and right


def _harm(path: Path, entry: dict[str, Any]) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "is no file"
        if status.st_size != entry["bytes"]:
            return f"has {status.st_size:,} bytes and was saved with {entry['bytes']:,}"
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return "is not what was saved: its sha256 differs"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return ""


def _entry(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())  # what was written by another descriptor, too
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": sha256}


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

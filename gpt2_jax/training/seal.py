"""The seal of a checkpoint: a manifest with the checksum of every file, written last.

A checkpoint gets its final name only when it is sealed and on disk, so that neither a process nor a machine that dies
leaves one that is only half there. `damage` tells whether it is still what was saved.
"""

import asyncio
import hashlib
import json
import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orbax.checkpoint._src.path.atomicity import AtomicRenameTemporaryPath

FORMAT = 2  # of checkpoints; 0 has no manifest, 0 and 1 know nothing of the guard
MANIFEST = "manifest.json"
METADATA = "_CHECKPOINT_METADATA"  # Orbax writes to it once more when the checkpoint is named
NAMED = "commit_success.txt"  # and then makes this


class SealedPath(AtomicRenameTemporaryPath):
    """Orbax's temporary folder of a checkpoint, sealed before it gets its final name."""

    async def finalize(self) -> None:
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
    """The format of the checkpoint in `folder`."""
    metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    return (metadata["custom_metadata"] or {}).get("format", 0)


def damage(folder: Path, items: Iterable[str]) -> str:
    """What is wrong with the checkpoint in `folder`; "" if nothing is.

    Args:
      folder: of a step.
      items: those to look at, folders in it such as "model".
    """
    items = list(items)
    try:
        found = format_of(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{METADATA} is missing or cannot be read"
    if missing := [item for item in items if not (folder / item).is_dir()]:
        return f"{missing[0]} is missing"
    if found == 0:
        return ""  # of before there were manifests
    if found not in range(FORMAT + 1):
        return f"its format is {found!r}, and this version of gpt2_jax reads up to {FORMAT}: use a newer one"
    try:
        files: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        wanted = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is missing or cannot be read"
    for name, (size, sha256) in wanted.items():
        if name.split("/")[0] not in items:
            continue
        path = folder / name
        try:
            length = path.stat().st_size
            if length != size:
                return f"{name} has {length:,} bytes and was saved with {size:,}"
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    return f"{name} is not what was saved: its sha256 differs"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
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

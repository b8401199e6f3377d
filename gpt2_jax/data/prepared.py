"""A prepared corpus on disk: token shards, their tokenizer and a manifest, as prepare.py writes and dataset.py reads.

A folder holds `train-00000-00000.bin ...`, `validation-...` (little-endian uint16, or uint32 for more than 65,536
entries), of a corpus with prompts as many `.mask` files (a bit a token, 1 where it is learnt), `tokenizer.json` and
`manifest.json`; `.verified.json` notes which files were found intact, and when they were written. Format 1 had one
number in the names, no masks and no counts of what was left out; it still opens.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from gpt2_jax import json_files
from gpt2_jax.data.records import check_record, read, redo
from gpt2_jax.data.tokenize import SPLITS
from gpt2_jax.errors import InputError, shown
from gpt2_jax.tokenizer import Tokenizer
from gpt2_jax.tokenizer_files import load

FORMAT = 2
VERIFIED = ".verified.json"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A corpus as tokens, split into "train" and "validation".

    Attributes:
      directory: where the files are.
      manifest: what `manifest.json` holds.
      tokenizer: the one that made the tokens.
    """

    directory: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer

    def tokens(self, split: str) -> list[np.memmap]:
        """The split's shards in order, each memory-mapped; documents are followed by end-of-text."""
        shards = self._split(split)["shards"]
        return [np.memmap(self.directory / shard["file"], self.manifest["dtype"], "r") for shard in shards]

    def learnt(self, split: str) -> list[np.ndarray] | None:
        """Which tokens of each shard are learnt: bits, uint8 [ceil(tokens / 8)], memory-mapped; None is all of them."""
        shards = self._split(split)["shards"]
        if not any("mask" in shard for shard in shards):
            return None
        return [np.memmap(self.directory / mask_file(shard), np.uint8, "r") for shard in shards]

    def count(self, split: str) -> int:
        """Tokens of the split."""
        return self._split(split)["tokens"]

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of the split's text over the tokens that are learnt: bits per byte = bits per token / this."""
        entry = self._split(split)
        return entry["bytes"] / entry.get("learnt", entry["tokens"])

    def verify(self, *, changed_only: bool = False, progress: Callable[[str], None] = logging.info) -> None:
        """Reads every file once, or only those that were written since the last time, here or by a copy.

        Raises:
          InputError: a shard or the tokenizer is not what was written.
        """
        wanted = {}
        for file, sha256 in hashes(self.manifest):
            stat = (self.directory / file).stat()
            wanted[file] = [sha256, stat.st_size, stat.st_mtime_ns]
        before = self._verified() if changed_only else {}
        unread = [file for file, note in wanted.items() if before.get(file) != note]
        if (size := sum(wanted[file][1] for file in unread)) > 1e9:
            progress(f"{self.directory}: verifying {size / 1e9:.1f} GB")
        for file in unread:
            sha256 = wanted[file][0]
            if sha256_of(self.directory / file) != sha256:
                raise InputError(
                    f"{self.directory / file} is corrupted: its sha256 is not {sha256}; {redo(self.directory)}"
                )
        largest = self.manifest["vocab_size"] - 1
        for file in unread:  # just read, and so still in memory
            if file.endswith(".bin") and np.memmap(self.directory / file, self.manifest["dtype"], "r").max() > largest:
                raise InputError(
                    f"{self.directory / file} has tokens above {largest}, the last of its vocabulary; "
                    f"{redo(self.directory)}"
                )
        if unread:
            self._note_verified(wanted)

    def _verified(self) -> dict[str, list]:
        try:
            return json_files.parse(json_files.read_bytes(self.directory / VERIFIED))
        except (FileNotFoundError, ValueError):  # never, or while it was written
            return {}

    def _note_verified(self, files: dict[str, list]) -> None:
        try:
            (self.directory / VERIFIED).write_text(json.dumps(files), encoding="utf-8")
        except OSError as error:  # of a folder that others own: the next run reads the files once more
            logging.info("%s cannot be written (%s)", self.directory / VERIFIED, error.strerror)

    def _split(self, name: str) -> dict[str, Any]:
        if name not in SPLITS:
            raise InputError(f"split is {name!r}; it must be 'train' or 'validation'")
        return self.manifest["splits"][name]


def load_prepared(directory: str | Path) -> Prepared:
    """Opens what `prepare` made; checks that each shard is there in full, see `Prepared.verify` for more.

    Raises:
      InputError: nothing prepared there, or files missing or cut short.
    """
    directory = Path(directory)
    if not (file := directory / "manifest.json").exists():
        raise InputError(f"{directory} holds no manifest.json, so no tokens; prepare makes them")
    manifest = read(file)
    if (found := manifest.get("format")) not in (1, FORMAT):
        raise InputError(f"{directory} has format {shown(found)}, this version reads 1 and {FORMAT}; {redo(directory)}")
    if "splits" not in manifest:
        raise InputError(f"{file} is corrupted (it has no splits); {redo(directory)}")
    check_record(manifest, file)
    for split in manifest["splits"].values():
        if split.get("largest", -1) >= manifest["vocab_size"]:
            raise InputError(
                f"{directory} has token {split['largest']}, and its vocabulary {manifest['vocab_size']} entries; "
                f"{redo(directory)}"
            )
    sizes = [(s["file"], s["tokens"] * np.dtype(manifest["dtype"]).itemsize) for s in shards_of(manifest)]
    sizes += [(mask_file(s), -(-s["tokens"] // 8)) for s in shards_of(manifest) if "mask" in s]
    for file, size in sizes:
        path = directory / file
        found = path.stat().st_size if path.exists() else None
        if found != size:
            state = "missing" if found is None else f"cut: it has {found:,} bytes of {size:,}"
            raise InputError(f"{path} is {state}; {redo(directory)}")
    tokenizer = load(directory / "tokenizer.json")
    if len(tokenizer) != manifest["vocab_size"]:
        raise InputError(
            f"{directory} has a tokenizer of {len(tokenizer)} entries, and its tokens are of "
            f"{manifest['vocab_size']}; {redo(directory)}"
        )
    return Prepared(directory, manifest, tokenizer)


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shards_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of all shards, of a manifest or of an unfinished record: `file`, `tokens`, `sha256`, maybe `mask`."""
    parts = [manifest] if "splits" in manifest else manifest["parts"].values()
    return [shard for part in parts for split in SPLITS for shard in part["splits"][split]["shards"]]


def mask_file(shard: dict[str, Any]) -> str:
    """The file that says which tokens of a shard are learnt."""
    return shard["file"].removesuffix(".bin") + ".mask"


def hashes(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Each file with the sha256 it should have."""
    return [("tokenizer.json", manifest["tokenizer"]), *hashes_of(shards_of(manifest))]


def hashes_of(shards: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The same of some shards and their masks."""
    masks = [(mask_file(shard), shard["mask"]) for shard in shards if "mask" in shard]
    return [*((shard["file"], shard["sha256"]) for shard in shards), *masks]

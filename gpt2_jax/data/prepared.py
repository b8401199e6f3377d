"""A prepared corpus on disk: token shards, their tokenizer and a manifest, as tokenize.py writes and dataset.py reads.

A folder holds `train-00000.bin ...`, `validation-00000.bin ...` (little-endian uint16, or uint32 for more than 65,536
entries), `tokenizer.json` and `manifest.json`.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer import Tokenizer, load

FORMAT = 1
SPLITS = ("train", "validation")


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

    def count(self, split: str) -> int:
        """Tokens of the split."""
        return self._split(split)["tokens"]

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of the split's text over its tokens: bits per byte = bits per token / this."""
        return self._split(split)["bytes"] / self.count(split)

    def verify(self) -> None:
        """Reads every file once.

        Raises:
          InputError: a shard or the tokenizer is not what was written.
        """
        for file, sha256 in hashes(self.manifest):
            if sha256_of(self.directory / file) != sha256:
                raise InputError(
                    f"{self.directory / file} is corrupted: its sha256 is not {sha256}; {redo(self.directory)}"
                )

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
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{directory} holds no manifest.json, so no tokens; prepare makes them") from None
    except ValueError as error:
        raise InputError(f"{directory / 'manifest.json'} is corrupted ({error}); {redo(directory)}") from None
    if (found := manifest.get("format")) != FORMAT:
        raise InputError(f"{directory} has format {found!r}, this version reads {FORMAT}; {redo(directory)}")
    for shard in shards_of(manifest):
        path, size = directory / shard["file"], shard["tokens"] * np.dtype(manifest["dtype"]).itemsize
        found = path.stat().st_size if path.exists() else None
        if found != size:
            state = "missing" if found is None else f"cut: it has {found:,} bytes of {size:,}"
            raise InputError(f"{path} is {state}; {redo(directory)}")
    return Prepared(directory, manifest, load(directory / "tokenizer.json"))


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def shards_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of all shards: `file`, `tokens`, `sha256`."""
    return [shard for split in SPLITS for shard in manifest["splits"][split]["shards"]]


def hashes(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Each file with the sha256 it should have."""
    return [("tokenizer.json", manifest["tokenizer"]), *((s["file"], s["sha256"]) for s in shards_of(manifest))]


def redo(directory: Path) -> str:
    """The end of an error about files that cannot be used."""
    return f"delete {directory} to make it again, or choose another workdir"

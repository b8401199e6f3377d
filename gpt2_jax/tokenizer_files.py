"""Tokenizers from files, folders and the hub."""

import os
import re
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from gpt2_jax import json_files
from gpt2_jax.errors import InputError, one_line, shown
from gpt2_jax.tokenizer import Tokenizer, failures_explained

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
LARGEST = 64 << 20  # bytes; the tokenizer.json of GPT-2, with 50,257 entries, has 1.6 MB


def load(name: str | Path, *, revision: str | None = None) -> Tokenizer:
    """Reads a `tokenizer.json`, a folder with one or with GPT-2's `vocab.json` and `merges.txt`, or one from the hub.

    Args:
      name: a path, or a hub id such as "openai-community/gpt2", or with its revision "openai-community/gpt2@607a30d".
      revision: branch, tag or commit on the hub.

    Raises:
      InputError: nothing there, the hub cannot be reached, or not a tokenizer that `Tokenizer` takes.
    """
    path = Path(os.path.expanduser(name))
    if os.path.exists(path):  # os.path: a hub id may be no name that a file can have
        if revision is not None:
            raise InputError(f"revision is {revision!r}, but {path} is a path; only hub ids have revisions")
        return _load_folder(path) if path.is_dir() else Tokenizer.from_json(_read(path), str(path))
    hub_id, at, pinned = str(name).partition("@")
    if at and revision is not None:
        raise InputError(f"revision is {revision!r}, but {shown(str(name))} has one, too; give one of them")
    if not HUB_ID.fullmatch(hub_id) or hub_id.endswith(".json") or bool(at) != bool(pinned):
        raise InputError(
            f"tokenizer {shown(str(name))} does not exist (looked in {Path.cwd()}); give a tokenizer.json, a folder "
            "with one or with vocab.json and merges.txt, or a hub id such as openai-community/gpt2 (or gpt2@v1)"
        )
    return _load_from_hub(hub_id, pinned or revision)


def _load_folder(folder: Path) -> Tokenizer:
    file, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    if file.exists():
        return Tokenizer.from_json(_read(file), str(file))
    if vocab.exists() and merges.exists():
        return _gpt2_files(vocab, merges)
    found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    raise InputError(f"{folder} holds {found}; a tokenizer is a tokenizer.json or a vocab.json with a merges.txt")


def _load_from_hub(name: str, revision: str | None) -> Tokenizer:
    try:
        files = _fetch(name, revision)
    except (OSError, ValueError, LookupError) as error:
        asked = f"{name}@{revision}" if revision else name
        raise InputError(
            f"tokenizer {asked!r} is no file or folder here and could not be fetched from the hub"
            f" ({type(error).__name__}: {one_line(error)}); check the id and the network, or give a path"
        ) from None
    return Tokenizer.from_json(_read(files[0]), name) if len(files) == 1 else _gpt2_files(*files)


def _fetch(name: str, revision: str | None) -> list[Path]:
    """The hub's `tokenizer.json`, or `vocab.json` and `merges.txt` where it has none; without network, the cache's."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def download(*files: str, **options) -> list[Path]:
        return [Path(huggingface_hub.hf_hub_download(name, file, revision=revision, **options)) for file in files]

    try:
        return download("tokenizer.json")
    except LocalEntryNotFoundError as unreachable:
        try:
            return download("vocab.json", "merges.txt", local_files_only=True)
        except LocalEntryNotFoundError:
            raise unreachable from None
    except EntryNotFoundError:
        try:
            return download("vocab.json", "merges.txt")
        except EntryNotFoundError as error:
            raise LookupError("it has no tokenizer.json and no vocab.json with merges.txt") from error


def _gpt2_files(vocab: Path, merges: Path) -> Tokenizer:
    what = f"and {merges.name} are not a byte-level BPE:"
    ids = json_files.read(vocab, what, "fetch both again")
    lines = [line.rstrip("\r") for line in _read(merges).split("\n")]
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    wrong = ""
    if any(type(i) is not int or not 0 <= i < len(ids) for i in ids.values()):
        wrong = f"the ids of its {len(ids):,} entries do not go from 0 on"
    elif strange := [pair for pair in pairs if len(pair) != 2]:
        wrong = f"{shown(' '.join(strange[0]))} is no merge of two"
    if wrong:
        raise InputError(f"{vocab} {what} {wrong}; fetch both again")
    with failures_explained(f"{vocab} {what[:-1]}"):
        tokenizer = tokenizers.Tokenizer(models.BPE(ids, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return Tokenizer(tokenizer, str(vocab))


def _read(path: Path) -> str:
    try:
        return json_files.read_bytes(path, LARGEST).decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{path} is not a {path.name}: {reason}; fetch it again") from None

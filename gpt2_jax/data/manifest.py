"""What a folder of tokens says of itself: the records of an unfinished one, and its manifest.

`progress.json` has the options, the corpus and the finished parts; parts that others finish, a Beam pipeline or a run
that streams, have a `part-00003.json` each. All that is written is complete or not there at all.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from gpt2_jax import whole_files
from gpt2_jax.data.documents import left_out_of
from gpt2_jax.data.layout import Layout, Progress
from gpt2_jax.data.options import DataConfig, with_defaults
from gpt2_jax.data.prepared import FORMAT
from gpt2_jax.data.records import check_part, check_record, read, redo
from gpt2_jax.data.sources import Source, nothing_kept
from gpt2_jax.data.tokenize import SPLITS
from gpt2_jax.errors import InputError, shown
from gpt2_jax.tokenizer import Tokenizer

# Options that change how tokens are made or used, and not which they are.
FREE = frozenset(
    (
        *("source", "reweigh", "retries", "encoder", "workers", "road", "readers", "shuffle_windows"),
        *("prepared", "fill_prepared", "accept_changes", "mask_documents", "restart_positions"),
    )
)


def options_of(config: DataConfig, name: str) -> dict[str, Any]:
    """What decides the tokens of a source."""
    return {"source": name, **_deciding(dataclasses.asdict(config))}


def options_in(record: dict[str, Any]) -> dict[str, Any]:
    """The same of a record or manifest; options that its version did not know have their defaults."""
    options = record["options"]
    return {"source": options["source"], **_deciding(with_defaults(options))}


def _deciding(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in FREE}


def new_record(config: DataConfig, layout: Layout, tokenizer: Tokenizer) -> dict[str, Any]:
    """What `progress.json` has of a corpus before its first part is finished."""
    return {
        "format": FORMAT,
        "options": options_of(config, layout.source.name),
        "source": layout.source.describe(),
        "fingerprint": layout.source.fingerprint(),
        "division": dataclasses.asdict(layout.division),
        "vocab_size": len(tokenizer),
        "dtype": "<u2" if len(tokenizer) <= 2**16 else "<u4",
        "tokenizer": hashlib.sha256(tokenizer.to_json().encode()).hexdigest(),
        "positions": list(layout.positions),
        "parts": {},
    }


def begin(folder: Path, config: DataConfig, layout: Layout, tokenizer: Tokenizer) -> dict[str, Any]:
    """Writes the tokenizer and a record without parts."""
    for leftover in (*folder.glob("*.bin*"), *folder.glob("*.mask*"), *folder.glob("part-*.json")):
        leftover.unlink()
    write_file(folder, "tokenizer.json", tokenizer.to_json().encode())
    record = new_record(config, layout, tokenizer)
    save(folder, "progress.json", record)
    return record


def changes(record: dict[str, Any], config: DataConfig, name: str, fingerprint: Callable[[], str | None]) -> str:
    """In what the tokens of `record` are not those of source `name`; "" is nothing.

    Args:
      record: or a manifest.
      config, name: what is wanted.
      fingerprint: of the source, None where it is gone; not called where options say it already.
    """
    before, now = options_in(record), options_of(config, name)
    changed = [f"data.{k} was {shown(before.get(k))} and is {now[k]!r}" for k in now if before.get(k) != now[k]]
    if not changed and fingerprint() not in (None, record["fingerprint"]):
        changed = [f"the corpus changed (it was {record['source']})"]
    return "; ".join(changed)


def unfinished(folder: Path, config: DataConfig, source: Source) -> dict[str, Any] | None:
    """The record of tokens that are begun, with the parts that others have finished for it; or the manifest.

    Raises:
      InputError: they are of another corpus or of other options.
    """
    for name in ("manifest.json", "progress.json"):
        try:
            record = read(folder / name)
            break
        except InputError:  # not there, or cut off: what is in it can be made again
            continue
    else:
        return None
    if "splits" in record or record.get("format") == FORMAT:
        check_record(record, folder / name)
    if "splits" not in record and (found := record.get("format")) != FORMAT:
        changed = f"they are of format {shown(found)}, this version writes {FORMAT}"
    else:
        changed = changes(record, config, source.name, source.fingerprint)
        if not changed and "splits" not in record and len(record["positions"]) != len(source.parts):
            changed = f"they are of {len(record['positions'])} parts, and the corpus has {len(source.parts)}"
    if changed:
        raise InputError(f"{folder} holds unfinished tokens of another corpus: {changed}; {redo(folder)}")
    if "splits" not in record:
        for number in range(len(source.parts)):
            with contextlib.suppress(InputError):  # a part of which there is no record is made again
                part = read(folder / part_record(number))
                check_part(part, folder / part_record(number))
                record["parts"][str(number)] = part
    return record


def part_record(number: int) -> str:
    """The file in which a part that is finished by another than this module's own pool is recorded."""
    return f"part-{number:05d}.json"


def manifest_of(record: dict[str, Any], source: Source) -> dict[str, Any]:
    """The manifest of a record with all its parts.

    Raises:
      InputError: a split without tokens.
    """
    manifest = {key: value for key, value in record.items() if key not in ("parts", "positions")}
    parts = [record["parts"][str(i)] for i in range(len(source.parts))]
    counts: Counter = Counter()
    for part in parts:
        counts.update(part["counts"])
    if not counts["kept"]:
        raise nothing_kept(source, counts)
    splits = {}
    for split in SPLITS:
        entries = [part["splits"][split] for part in parts]
        splits[split] = {
            key: sum(entry[key] for entry in entries) for key in ("documents", "tokens", "learnt", "bytes")
        }
        splits[split]["largest"] = max(entry["largest"] for entry in entries)
        splits[split]["shards"] = [shard for entry in entries for shard in entry["shards"]]
        if not splits[split]["tokens"]:
            raise InputError(
                f"the {split} split of {source.name} has no document; change data.validation_fraction "
                f"({record['options'].get('validation_fraction')}) or give more documents"
            )
    return {**manifest, "counts": dict(sorted(counts.items())), "splits": splits}


def make_folder(folder: Path) -> None:
    """Makes it; raises `InputError` if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be made ({error.strerror}); choose another workdir") from None


@contextlib.contextmanager
def locked(directory: Path, progress: Progress) -> Iterator[bool]:
    """Keeps other processes from writing tokens to `directory`; gives whether it waited for one. Death unlocks, too."""
    lock, waited = filelock.FileLock(directory / ".lock"), False
    try:
        held = lock.acquire(blocking=False)
    except filelock.Timeout:
        progress(f"another process writes tokens to {directory}: waiting for it")
        held, waited = lock.acquire(poll_interval=0.5), True
    except OSError as error:
        raise InputError(f"{lock.lock_file} cannot be locked ({error.strerror}); choose another folder") from None
    with held:
        yield waited


def write_file(folder: Path, name: str, data: bytes) -> None:
    """Writes all of `data`, or leaves what was there before.

    Raises:
      InputError: the disk refuses.
    """
    path = folder / name
    try:
        whole_files.write(path, data)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); make room and run again: it goes on after the finished parts"
        ) from None


def as_json(record: dict[str, Any]) -> bytes:
    """A record as it is written."""
    return (json.dumps(record, indent=2) + "\n").encode()


def save(folder: Path, name: str, record: dict[str, Any]) -> None:
    """Writes a record as JSON, all of it or nothing."""
    write_file(folder, name, as_json(record))


def summary(manifest: dict[str, Any]) -> str:
    """A line about what was made."""
    counts = [
        f"{s['tokens']:,} {name} tokens of {s['documents']:,} documents" for name, s in manifest["splits"].items()
    ]
    dropped = left_out_of(manifest.get("counts", {}))
    left_out = f"; left out {dropped}" if dropped else ""
    return f"{manifest['source']}; {', '.join(counts)}{left_out}; vocabulary of {manifest['vocab_size']:,}"

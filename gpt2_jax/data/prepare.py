"""The prepared road: a corpus to token shards on disk, made once, in parallel, by parts.

A prepared folder holds `train-00000-00000.bin ...` (part, shard), `validation-...`, `tokenizer.json` and, written last,
`manifest.json`. Until then `progress.json` says which parts are finished; a run that is killed goes on after them and
ends with the same bytes as one that is not, whatever the number of workers.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from gpt2_jax.data.layout import Layout, Progress, lay_out
from gpt2_jax.data.manifest import (
    begin,
    changes,
    locked,
    make_folder,
    manifest_of,
    save,
    summary,
    unfinished,
    write_file,
)
from gpt2_jax.data.options import START, DataConfig
from gpt2_jax.data.prepared import Prepared, hashes_of, load_prepared, sha256_of, shards_of
from gpt2_jax.data.records import redo
from gpt2_jax.data.sources import Source, open_source
from gpt2_jax.data.tokenize import SPLITS, Encoding, Task, encode_part
from gpt2_jax.data.workers import pool
from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer import END_OF_TEXT, Tokenizer, control_code
from gpt2_jax.tokenizer_files import load
from gpt2_jax.tokenizer_training import train_bpe, train_characters


def prepare(
    config: DataConfig, directory: str | Path, *, start: Tokenizer | None = None, progress: Progress = logging.info
) -> dict[str, Prepared]:
    """Makes the tokens of `config` in `directory`, goes on with them, or finds them done.

    Args:
      config: the corpora, their split and their tokenizer.
      directory: a folder for this alone; made if absent. Each corpus of a mixture has a folder of its own in it.
      start: the tokenizer that `config.tokenizer` means by "start".
      progress: is told in one line what happens.

    Returns:
      {name of the source: its tokens}.

    Raises:
      InputError: a bad corpus or tokenizer, a split left empty, a full disk, or a folder that holds the tokens of
        another corpus or of other options, or damaged ones.
    """
    directory = Path(directory)
    folders = {name: directory / subfolder(config, name) for name in config.weights}
    if found := _all_finished(config, folders, start, progress):
        return found
    for folder in folders.values():
        make_folder(folder)
    with locked(directory, progress) as waited:
        found = waited and _all_finished(config, folders, start, progress)
        return found or _prepare(config, folders, start, progress)


def _all_finished(
    config: DataConfig, folders: dict[str, Path], start: Tokenizer | None, progress: Progress
) -> dict[str, Prepared] | None:
    found = {name: finished(config, name, folder, progress, start) for name, folder in folders.items()}
    return found if all(found.values()) else None


def _prepare(
    config: DataConfig, folders: dict[str, Path], start: Tokenizer | None, progress: Progress
) -> dict[str, Prepared]:
    names = list(folders)
    sources = {name: open_source(config, name) for name in names}
    with pool(config.workers, sources.values()) as run:
        records = {name: _resume(folders[name], config, sources[name], progress) for name in names}
        todo = [name for name in names if "splits" not in (records[name] or {})]
        known = {name: Layout.of_record(config, sources[name], records[name]) for name in todo}
        layouts = {name: known[name] or lay_out(config, sources[name], run, progress) for name in todo}
        begun = [folders[name] for name in names if records[name]]
        tokenizer = load(begun[0] / "tokenizer.json") if begun else shared_tokenizer(config, layouts, progress, start)
        for name in todo:
            record = records[name] or begin(folders[name], config, layouts[name], tokenizer)
            _finish(folders[name], config, layouts[name], tokenizer, record, run, progress)
    found = {name: load_prepared(folder) for name, folder in folders.items()}
    for prepared in found.values():
        prepared.verify(changed_only=True, progress=progress)
    return found


def subfolder(config: DataConfig, name: str) -> str:
    """Where the tokens of a source are: "" for one that is alone, else a folder of its own."""
    return "" if len(config.weights) == 1 else name.replace("/", "--")


def shared_tokenizer(
    config: DataConfig, layouts: dict[str, Layout], progress: Progress, start: Tokenizer | None = None
) -> Tokenizer:
    """The tokenizer of all corpora, trained on the training texts if it has to be."""

    def texts(splits: Sequence[str]) -> Iterator[str]:
        for text in itertools.chain.from_iterable(layout.texts(config, splits) for layout in layouts.values()):
            yield from text.split(END_OF_TEXT) if config.allow_special else [text]

    if config.tokenizer == "bpe":
        progress(f"training a byte-level BPE of {config.vocab_size} entries")
        tokenizer = train_bpe(texts(("train",)), config.vocab_size)
    elif config.tokenizer == "characters":
        tokenizer = train_characters(texts(SPLITS))
    else:
        tokenizer = named_tokenizer(config, start)
    return with_control_codes(config, tokenizer)


def named_tokenizer(config: DataConfig, start: Tokenizer | None) -> Tokenizer:
    """The tokenizer that `config.tokenizer` names, which is `start` or lies somewhere.

    Raises:
      InputError: there is none such.
    """
    if config.tokenizer != START:
        return load(config.tokenizer)
    if start is None:
        raise InputError(
            "data.tokenizer is 'start', which only a run with finetune.start has; give a tokenizer.json, a folder or a "
            "hub id"
        )
    return start


def with_control_codes(config: DataConfig, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the control codes of all documents, if there are to be any."""
    return tokenizer.with_special_tokens(map(control_code, config.codes)) if config.codes else tokenizer


def encoding_of(config: DataConfig, name: str, tokenizer: Tokenizer) -> Encoding:
    """How the documents of a source become tokens."""
    controls, codes = {}, tokenizer.control_codes
    if config.control_key:
        controls = {name: codes[name] for name in config.codes}
    elif config.control_codes:
        controls = {"": codes[name.rpartition("/")[2]]}
    return Encoding(tokenizer.to_json(), config.encoder, controls, config.control_dropout, config.allow_special)


def _resume(folder: Path, config: DataConfig, source: Source, progress: Progress) -> dict[str, Any] | None:
    """The record of an unfinished run, without the parts whose files are damaged.

    Raises:
      InputError: it is of other options or another corpus.
    """
    record = unfinished(folder, config, source)
    if record is None or "splits" in record:  # of a finished one of a mixture
        return record
    if not _intact(folder / "tokenizer.json", record["tokenizer"]):
        progress(f"{folder / 'tokenizer.json'} is not as it was written: starting over")
        return None
    for number, part in list(record["parts"].items()):
        for file, sha256 in hashes_of(shards_of({"parts": {number: part}})):
            if not _intact(folder / file, sha256):
                progress(f"{folder / file} is not as it was written: making its part again")
                del record["parts"][number]
                break
    progress(f"going on after {len(record['parts'])} finished parts, {len(shards_of(record))} shards")
    return record


def _intact(path: Path, sha256: str) -> bool:
    return path.exists() and sha256_of(path) == sha256


def _finish(
    folder: Path,
    config: DataConfig,
    layout: Layout,
    tokenizer: Tokenizer,
    record: dict[str, Any],
    run: Callable,
    progress: Progress,
) -> None:
    """Writes the parts that `record` lacks, then the manifest."""
    tasks = layout.tasks(config, encoding_of(config, layout.source.name, tokenizer), record["dtype"])
    todo = [task for task in tasks if str(task.number) not in record["parts"]]
    began, done = time.monotonic(), 0
    for task, entry in zip(todo, run(functools.partial(write_part, folder), todo)):
        record["parts"][str(task.number)] = entry
        save(folder, "progress.json", record)
        tokens = sum(split["tokens"] for split in entry["splits"].values())
        done += tokens
        progress(
            f"{folder.name}: part {len(record['parts'])} of {len(tasks)}, {task.part.name}: {tokens:,} tokens "
            f"({done / max(time.monotonic() - began, 1e-9):,.0f} tokens/s)"
        )
    manifest = manifest_of(record, layout.source)
    save(folder, "manifest.json", manifest)
    (folder / "progress.json").unlink(missing_ok=True)
    for leftover in (*folder.glob("*.unfinished"), *folder.glob("part-*.json")):  # the first, of runs that were killed
        leftover.unlink(missing_ok=True)
    progress(f"{folder}: {summary(manifest)}")


def write_part(folder: Path, task: Task) -> dict[str, Any]:
    """`encode_part` to files in `folder`."""
    return encode_part(task, functools.partial(write_file, folder))


def finished(
    config: DataConfig, name: str, folder: Path, progress: Progress, start: Tokenizer | None = None
) -> Prepared | None:
    """What `folder` holds, if it is finished; `start` as of `prepare`.

    Raises:
      InputError: it is damaged, of another corpus or of other options. A corpus that is gone from here counts as the
        same.
    """
    if not (folder / "manifest.json").exists():
        return None
    prepared = load_prepared(folder)

    def fingerprint() -> str | None:
        try:
            return open_source(config, name).fingerprint()
        except InputError:
            return None

    changed = changes(prepared.manifest, config, name, fingerprint)
    at_hand = start is not None if config.tokenizer == START else Path(config.tokenizer).expanduser().exists()
    if not changed and config.tokenizer not in ("bpe", "characters") and at_hand:
        same = with_control_codes(config, named_tokenizer(config, start)).to_json() == prepared.tokenizer.to_json()
        where = "of the start" if config.tokenizer == START else f"at {config.tokenizer}"
        changed = "" if same else f"the tokenizer {where} changed"
    if changed:
        raise InputError(f"{folder} holds tokens of another corpus: {changed}; {redo(folder)}")
    prepared.verify(changed_only=True, progress=progress)
    (folder / "progress.json").unlink(missing_ok=True)
    progress(f"{folder} holds the tokens already: {summary(prepared.manifest)}")
    return prepared

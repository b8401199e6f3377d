"""Preparation as an Apache Beam pipeline, for corpora that outgrow a machine: the shards and manifest of prepare.py.

Each element is a part of the corpus. A worker encodes it, writes its shards and then its record, so that a part that is
done twice, as runners may, is the same, and a pipeline that is run again goes on after the finished parts.
"""

import dataclasses
import functools
import json
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from absl import logging
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions

from gpt2_jax import json_files
from gpt2_jax.data import prepare as local
from gpt2_jax.data.layout import Layout, Progress, lay_out
from gpt2_jax.data.manifest import as_json, manifest_of, new_record, part_record, summary
from gpt2_jax.data.options import DataConfig
from gpt2_jax.data.records import check_part
from gpt2_jax.data.sources import open_source
from gpt2_jax.data.tokenize import Encoding, Task, encode_part
from gpt2_jax.data.workers import pool
from gpt2_jax.errors import InputError, one_line
from gpt2_jax.tokenizer import Tokenizer

_REFUSED = re.compile(r"gpt2_jax\.errors\.InputError: (.+)")


def prepare(
    config: DataConfig, out: str, *, options: Sequence[str] = (), progress: Progress = logging.info
) -> dict[str, dict[str, Any]]:
    """Makes the tokens of `config` in `out`.

    A corpus of files is read once before the pipeline, here, to divide it; one of the hub is not (see `lay_out`).

    Args:
      config: as for `prepare.prepare`.
      out: a folder on any filesystem of Beam that the workers reach: a path, "gs://bucket/folder", ...
      options: of the pipeline, such as ["--runner=DataflowRunner", "--project=..."]; by default it runs here.
      progress: is told in one line what happens.

    Returns:
      {name of the source: its manifest}.

    Raises:
      InputError: a bad corpus, a folder that cannot be used, or a pipeline that failed.
    """
    _make_folder(out)
    sources = {name: open_source(config, name) for name in config.weights}
    with pool(config.workers, sources.values()) as run:
        layouts = {name: lay_out(config, source, run, progress) for name, source in sources.items()}
    tokenizer = local.shared_tokenizer(config, layouts, progress)
    return {
        name: _prepare_source(config, layout, tokenizer, _join(out, local.subfolder(config, name)), options, progress)
        for name, layout in layouts.items()
    }


def _prepare_source(
    config: DataConfig, layout: Layout, tokenizer: Tokenizer, out: str, options: Sequence[str], progress: Progress
) -> dict[str, Any]:
    record = new_record(config, layout, tokenizer)
    header = as_json(record)
    _make_folder(out)
    begun = _join(out, "progress.json")
    if FileSystems.exists(_join(out, "manifest.json")) or (FileSystems.exists(begun) and _read(begun) != header):
        raise InputError(f"{out} holds other tokens, or finished ones; delete it, or choose another --out")
    _write(out, "tokenizer.json", tokenizer.to_json().encode())
    _write(out, "progress.json", header)

    encoding = local.encoding_of(config, layout.source.name, tokenizer)
    tasks = layout.tasks(config, Encoding(""), record["dtype"])  # the tokenizer travels once, not with each part
    settings = PipelineOptions(list(options))
    settings.view_as(SetupOptions).save_main_session = False
    if settings.view_as(StandardOptions).runner is None:
        # What DirectRunner comes to for a pipeline such as this, once it has tried to download another, Prism.
        settings.view_as(StandardOptions).runner = "FnApiRunner"
    try:
        with beam.Pipeline(options=settings) as pipeline:
            _ = (
                pipeline
                | "parts" >> beam.Create(tasks)
                | "spread" >> beam.Reshuffle()
                | "encode" >> beam.ParDo(EncodePart(encoding, out))
            )
    except Exception as error:  # each runner has its own
        raise InputError(
            f"the pipeline failed ({_reason(error)}); run it again: it goes on after the finished parts"
        ) from error

    names = [part_record(task.number) for task in tasks]
    for number, name in enumerate(names):
        record["parts"][str(number)] = _read_part(_join(out, name))
    manifest = manifest_of(record, layout.source)
    _write(out, "manifest.json", as_json(manifest))
    FileSystems.delete([begun, *(_join(out, name) for name in names)])
    progress(f"{out}: {summary(manifest)}")
    return manifest


class EncodePart(beam.DoFn):
    """Writes the shards of a part, unless its record is there already."""

    def __init__(self, encoding: Encoding, out: str):
        self.encoding, self.out = encoding, out

    def process(self, task: Task):
        """Encodes the part of a task, and writes its record last."""
        if FileSystems.exists(_join(self.out, part_record(task.number))):
            return
        task = dataclasses.replace(task, encoding=self.encoding)
        entry = encode_part(task, functools.partial(_write, self.out))
        _write(self.out, part_record(task.number), json.dumps(entry).encode())


def _reason(error: Exception) -> str:
    """What a worker refused, which runners raise as it is or in the text of a traceback; else the end of that text."""
    text = str(error) if isinstance(error, InputError) else "".join(_REFUSED.findall(str(error))[:1])
    refused = text.partition(" [while running")[0]
    return refused or f"{type(error).__name__}: {' '.join(str(error).split())[-500:]}"


def _make_folder(path: str) -> None:
    try:
        if not FileSystems.exists(path):
            FileSystems.mkdirs(path)
    except (OSError, ValueError) as error:  # also a scheme whose package is not installed
        raise InputError(f"{path} cannot be made ({one_line(error)}); choose another --out") from None


def _join(folder: str, name: str) -> str:
    return FileSystems.join(folder, name) if name else folder


def _write(folder: str, name: str, data: bytes) -> None:
    """A file, complete or not at all, whoever else writes the same."""
    unfinished, path = _join(folder, f"{name}.{uuid.uuid4().hex}.unfinished"), _join(folder, name)
    with FileSystems.create(unfinished, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        file.write(data)
    FileSystems.rename([unfinished], [path])


def _read_part(path: str) -> dict[str, Any]:
    try:
        part = json_files.parse(_read(path))
    except ValueError as error:
        raise InputError(f"{path} is corrupted ({one_line(error)}); delete it, and run again") from None
    check_part(part, Path(path))
    return part


def _read(path: str) -> bytes:
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        return file.read()

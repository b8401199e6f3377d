"""Streamed text kept as prepared tokens."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from gpt2_jax.config import DataConfig
from gpt2_jax.data import prepare as preparing
from gpt2_jax.data.filling import open_fillers
from gpt2_jax.data.manifest import part_record
from gpt2_jax.data.prepare import encoding_of, prepare, with_control_codes
from gpt2_jax.data.prepared import load_prepared
from gpt2_jax.data.rows import Rows
from gpt2_jax.data.sources import open_source
from gpt2_jax.data.stream import Stream
from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer_files import load
from gpt2_jax.tokenizer_training import train_bpe

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning:datasets")

SHARDS, DOCUMENTS = 4, 25


def quiet(_: str) -> None:
    pass


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr("gpt2_jax.data.reader.BATCH_CHARACTERS", 300)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder with a copy of a dataset of the hub, another with poems, and a tokenizer."""
    folder = tmp_path_factory.mktemp("corpus")
    for name in ("stories", "poems"):
        (folder / name).mkdir()
        for shard in range(SHARDS):
            texts = [f"{name[:-1]} {shard}.{i}: " + "once upon a time " * (i * 7 % 5) for i in range(DOCUMENTS)]
            lines = [json.dumps({"text": text, "prompt": f"tell {i % 9}:\n\n"}) for i, text in enumerate(texts)]
            (folder / name / f"train-{shard:05d}.jsonl").write_text("\n".join(lines))
    train_bpe(["story poem once upon a time tell 0123456789.:"], 300).save(folder / "tokenizer.json")
    return folder


@pytest.fixture
def config(corpus) -> DataConfig:
    return DataConfig(
        source="stories", paths=str(corpus / "stories"), tokenizer=str(corpus / "tokenizer.json"),
        validation_fraction=0.1, tokens_per_shard=200, workers=1, readers=2, shuffle_windows=4,
        road="stream", fill_prepared=True, min_characters=15,
    )  # fmt: skip


def stream(config, directory, **options):
    """A stream that keeps its tokens in `directory`, or keeps nothing if that is None."""
    tokenizer = with_control_codes(config, load(config.tokenizer))
    sources = {name: open_source(config, name) for name in config.weights}
    fillers = {} if directory is None else open_fillers(config, directory, sources, tokenizer, quiet)
    return Stream(
        sources, {name: encoding_of(config, name, tokenizer) for name in sources}, config.reweighing,
        batch_size=2, sequence_length=16, validation_fraction=config.validation_fraction, readers=config.readers,
        shuffle_windows=config.shuffle_windows, seed=5, fillers=fillers, **options,
    )  # fmt: skip


def read_epochs(batches, epochs=1):
    while batches.position[..., 0].min() < epochs:
        next(batches)


def prepared_by(config, directory):
    """What preparation makes of the same options."""
    return prepare(dataclasses.replace(config, road="prepared", fill_prepared=False), directory, progress=quiet)


def contents(directory):
    return {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file() and p.name[0] != "."}


def records(directory):
    return sorted(path.name for path in directory.glob("part-*.json"))


@pytest.mark.parametrize("options", [{}, {"prompt_key": "prompt"}, {"control_codes": True}])
def test_an_epoch_leaves_what_preparation_writes(config, tmp_path, monkeypatch, options):
    config = dataclasses.replace(config, **options)
    wanted = prepared_by(config, tmp_path / "prepared")["stories"]
    assert wanted.manifest["counts"]["too short"] > 0 and len(wanted.manifest["splits"]["train"]["shards"]) > SHARDS
    read_epochs(stream(config, tmp_path / "filled"))
    assert len(records(tmp_path / "filled")) == SHARDS
    monkeypatch.setattr(preparing, "encode_part", None)  # nothing is left to encode
    prepared_by(config, tmp_path / "filled")
    assert contents(tmp_path / "filled") == contents(tmp_path / "prepared")
    load_prepared(tmp_path / "filled").verify()
    # A stream over finished tokens leaves them as they are.
    read_epochs(stream(config, tmp_path / "filled"))
    assert contents(tmp_path / "filled") == contents(tmp_path / "prepared")


def test_files_of_ones_own(config, corpus, tmp_path, monkeypatch):
    """Preparation alone would divide these exactly, and goes on as the stream has begun."""
    of_hub = prepared_by(config, tmp_path / "hub")["stories"]
    config = dataclasses.replace(config, source="files")
    read_epochs(stream(config, tmp_path / "filled"))
    monkeypatch.setattr(preparing, "encode_part", None)
    (filled,) = prepared_by(config, tmp_path / "filled").values()
    assert filled.manifest["division"] == {"kind": "document", "boundary": int(0.1 * 2**64)}
    for split in ("train", "validation"):
        np.testing.assert_array_equal(np.concatenate(filled.tokens(split)), np.concatenate(of_hub.tokens(split)))


def test_what_is_kept_changes_no_batch(config, tmp_path):
    plain, kept = stream(config, None), stream(config, tmp_path / "filled")
    for _ in range(60):
        a, b = next(plain), next(kept)
        np.testing.assert_array_equal(a["tokens"], b["tokens"])
        np.testing.assert_array_equal(plain.position, kept.position)
    assert kept.counts["too short"] > 0 and plain.counts["too short"] > 0


def test_preparation_goes_on_after_the_parts_that_are_there(config, tmp_path, monkeypatch):
    prepared_by(config, tmp_path / "prepared")
    batches = stream(config, tmp_path / "filled")
    while not (before := records(tmp_path / "filled")):
        next(batches)
    encoded, plain = [], preparing.encode_part
    monkeypatch.setattr(preparing, "encode_part", lambda task, write: encoded.append(task.number) or plain(task, write))
    prepared_by(config, tmp_path / "filled")
    assert encoded == [n for n in range(SHARDS) if part_record(n) not in before]
    # The stream, which knew nothing of that, reads on.
    read_epochs(batches)
    assert contents(tmp_path / "filled") == contents(tmp_path / "prepared")


def test_a_resumed_stream_keeps_the_parts_that_it_reads_whole(config, tmp_path):
    batches = stream(config, tmp_path / "filled")
    while not (before := records(tmp_path / "filled")):
        next(batches)
    for path in before:
        (tmp_path / "filled" / path).unlink()  # as if it was killed before
    again = stream(config, tmp_path / "filled", start_step=3, position=batches.position)
    while again.position[..., 0].min() == 0:
        next(again)
    assert 0 < len(records(tmp_path / "filled")) < SHARDS or (batches.position[..., 1] == 0).all()
    read_epochs(again, 3)
    prepared_by(config, tmp_path / "prepared")
    prepared_by(config, tmp_path / "filled")
    assert contents(tmp_path / "filled") == contents(tmp_path / "prepared")


def test_every_source_of_a_mixture(config, corpus, tmp_path, monkeypatch):
    config = dataclasses.replace(
        config, source="stories=3, poems=1", paths=f"stories: {corpus / 'stories'}; poems: {corpus / 'poems'}"
    )
    read_epochs(stream(config, tmp_path / "filled"))
    monkeypatch.setattr(preparing, "encode_part", None)
    found = prepared_by(config, tmp_path / "filled")
    for name in ("stories", "poems"):
        text = found[name].tokenizer.decode(np.concatenate(found[name].tokens("train")))
        assert f"{name[:-1]} 3.1: " in text


def test_several_processes_fill_one_folder(config, tmp_path):
    processes = [stream(config, tmp_path / "filled", rows=Rows.part(i, 2)) for i in range(2)]
    while np.maximum.reduce([p.position for p in processes])[..., 0].min() < 1:
        for batches in processes:
            next(batches)
    prepared_by(config, tmp_path / "filled")
    prepared_by(config, tmp_path / "prepared")
    assert contents(tmp_path / "filled") == contents(tmp_path / "prepared")


def test_processes_with_the_same_rows_fill_once(config, tmp_path):
    held = (0, 1)
    second = stream(config, tmp_path / "filled", rows=Rows(2, held, first=()))
    first = stream(config, tmp_path / "filled", rows=Rows(2, held, first=held))
    read_epochs(second)
    assert not list((tmp_path / "filled").glob("*.bin"))
    read_epochs(first)
    prepared_by(config, tmp_path / "filled")
    prepared_by(config, tmp_path / "prepared")
    assert contents(tmp_path / "filled") == contents(tmp_path / "prepared")


def test_a_damaged_part_is_made_again(config, tmp_path):
    read_epochs(stream(config, tmp_path / "filled"))
    shard = next((tmp_path / "filled").glob("*.bin"))
    shard.write_bytes(bytes(len(shard.read_bytes())))
    said = []
    prepare(
        dataclasses.replace(config, road="prepared", fill_prepared=False), tmp_path / "filled", progress=said.append
    )
    assert any(f"{shard} is not as it was written" in line for line in said)
    load_prepared(tmp_path / "filled").verify()


def test_a_full_disk_stops_the_stream_and_says_so(config, tmp_path, monkeypatch):
    batches = stream(config, tmp_path / "filled")

    def full(folder, name, data):
        raise InputError(f"{folder / name} cannot be written (No space left on device); make room")

    monkeypatch.setattr("gpt2_jax.data.filling.write_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        read_epochs(batches)
    assert records(tmp_path / "filled") == []


def test_what_is_refused(config, corpus, tmp_path):
    with pytest.raises(
        InputError,
        match=r"data.fill_prepared keeps the parts that one reader reads, and stories has 4 for data.readers \(8\) to "
        r"share; set --config.data.readers=4 or fewer, or prepare it first",
    ):
        stream(dataclasses.replace(config, readers=8), tmp_path / "filled")
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes((corpus / "tokenizer.json").read_bytes())
    config = dataclasses.replace(config, tokenizer=str(tokenizer))
    read_epochs(stream(config, tmp_path / "filled"))
    before = contents(tmp_path / "filled")
    train_bpe(["another"], 300).save(tokenizer)
    with pytest.raises(InputError, match=r"filled holds unfinished tokens of another tokenizer, or of which others va"):
        stream(config, tmp_path / "filled")
    assert contents(tmp_path / "filled") == before
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file cannot be made \(File exists\); choose another workdir"):
        stream(config, tmp_path / "file")
    for option in ("fill_prepared", "accept_changes"):
        with pytest.raises(InputError, match=rf"data.{option} is True; it must be false unless data.road is 'stream'"):
            DataConfig(**{option: True})

"""JSON that is read back: configs, manifests and records of tokens, positions of streams, metrics."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import strategies as st
from mutations import accepted, damaged_bytes, damaged_json, fuzz

from gpt2_jax import json_files
from gpt2_jax.analysis.curves import perplexity_curve
from gpt2_jax.config import Config
from gpt2_jax.data import reader
from gpt2_jax.data.corpus import _check_unchanged, _position
from gpt2_jax.data.manifest import unfinished
from gpt2_jax.data.prepared import VERIFIED, load_prepared
from gpt2_jax.data.sources import open_source
from gpt2_jax.data.stream import Stream
from gpt2_jax.data.tokenize import Encoding
from gpt2_jax.errors import InputError
from gpt2_jax.pretrained import load_config
from gpt2_jax.training import metrics


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def small_batches():
    """A reader that encodes a few documents at once, and not as many as fit 131,072 characters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "BATCH_CHARACTERS", 100)
        yield


def stream(config, tokenizer, saved):
    """Two readers of the prepared texts, from a position on."""
    return Stream(
        {"files": open_source(config)}, {"files": Encoding(tokenizer)}, [(0, {"files": 1.0})], batch_size=2,
        sequence_length=4, validation_fraction=0.2, readers=2, shuffle_windows=4, seed=0, position=_position(saved),
    )  # fmt: skip


def damaged(data, content):
    return (damaged_json if data.draw(st.integers(0, 3)) else damaged_bytes)(data, content)


@fuzz(30)
def test_config_of_a_model(saved, scratch, data):
    good = (saved["flax"] / "config.json").read_bytes()
    file = scratch / "config.json"
    file.write_bytes(damaged(data, good))
    accepted(lambda: load_config(scratch), file)


@fuzz(30)
def test_config_of_a_checkpoint(workdir, data):
    good = (workdir / "checkpoints" / "2" / "config" / "metadata").read_bytes()
    try:
        groups = json_files.parse(damaged(data, good))
    except ValueError:
        return
    accepted(lambda: Config.from_dict({"model": groups.get("model", {})}), "")
    accepted(lambda: Config.from_dict(groups), "")


@fuzz(30)
def test_manifest(prepared, data):
    file = prepared[1] / "manifest.json"
    good = file.read_bytes()
    try:
        file.write_bytes(damaged(data, good))

        def read():
            found = load_prepared(file.parent)
            found.verify()
            for split in ("train", "validation"):
                found.tokens(split), found.learnt(split), found.count(split)

        accepted(read, file.parent)
    finally:
        file.write_bytes(good)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(dtype="O"), r"is corrupted \(dtype is 'O'\); delete .* to make it again"),
        (lambda m: m.update(dtype="<u8"), r"is corrupted \(dtype is '<u8'\)"),
        (lambda m: m.update(vocab_size=2), "has a tokenizer of [0-9]+ entries, and its tokens are of 2|has token"),
        (lambda m: m.update(vocab_size=2**40), r"is corrupted \(vocab_size is 1099511627776\)"),
        (lambda m: m["splits"].pop("train"), r"is corrupted \(splits is \{'validation': "),
        (lambda m: m["splits"]["train"].update(tokens=1), r"\(splits\.train\.tokens is 1; its shards have [0-9,]+\)"),
        (
            lambda m: m["splits"]["train"]["shards"][0].update(file="../tokens/train-00000-00000.bin"),
            r"\(splits\.train\.shards\.0\.file is '\.\./tokens/train-00000-00000\.bin'\)",
        ),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="/etc/passwd"), r"file is '/etc/passwd'\)"),
        (lambda m: m["splits"]["train"]["shards"][0].update(sha256="0"), r"sha256 is '0'\)"),
        (lambda m: m["splits"]["train"]["shards"][-1].update(mask="0" * 64), "; all shards have one, or none"),
        (lambda m: m.update(format=True, counts=[]), r"is corrupted \(counts is \[\]\)"),
        (lambda m: m.pop("options"), r"is corrupted \(options is None\)"),
    ],
)
def test_what_a_manifest_may_not_hold(change, message, prepared):
    file = prepared[1] / "manifest.json"
    good = file.read_bytes()
    manifest = json.loads(good)
    change(manifest)
    try:
        file.write_text(json.dumps(manifest))
        with pytest.raises(InputError, match=message):
            load_prepared(file.parent)
    finally:
        file.write_bytes(good)


def test_tokens_above_the_vocabulary_are_found(prepared):
    """Whatever the manifest says of them, with a checksum that is right."""
    file, shard = prepared[1] / "manifest.json", prepared[1] / "train-00000-00000.bin"
    good, tokens = file.read_bytes(), shard.read_bytes()
    manifest = json.loads(good)
    try:
        shard.write_bytes(b"\xff\xff" + tokens[2:])
        manifest["splits"]["train"]["shards"][0]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
        file.write_text(json.dumps(manifest))
        with pytest.raises(InputError, match=r"train-00000-00000\.bin has tokens above [0-9]+, the last of its voc"):
            load_prepared(file.parent).verify()
    finally:
        shard.write_bytes(tokens)
        file.write_bytes(good)


@pytest.mark.parametrize(
    ("counters", "message"),
    [
        ([0, 0, 0, 10**12, 0, 0], "epoch 0, part 0, row 0, offset 1000000000000, block 0, taken 0"),
        ([0, 0, 0, 0, 0, 10**12], r"\) is none that a reader comes to; use another checkpoint, or start anew"),
        ([0, 10**6, 0, 0, 0, 0], "the saved position in files "),
        ([0, 0, 10**9, 0, 0, 0], "the saved position in files "),
        ([0, 0, 0, -1, 0, 0], "which is none in a stream; use another checkpoint"),
        ([0, 0, 0, 0, 0, 2**63 - 1], "which is none in a stream"),
        ([0, 0, 0, 0, 0, 0.5], "which is none in a stream"),
        ([0, 0, 0, 0, 0], "the saved position is of 2 readers and 1 sources, and this run has 2 and 1"),
    ],
)
def test_positions_that_no_reader_comes_to(counters, message, prepared, small_batches):
    config, folder = prepared
    with pytest.raises(InputError, match=message):
        next(stream(config, (folder / "tokenizer.json").read_text(), {"position": [[counters]] * 2}))


@fuzz(20)
def test_record_of_unfinished_tokens(prepared, scratch, data):
    config, folder = prepared
    manifest = json.loads((folder / "manifest.json").read_bytes())
    part = {"counts": manifest.pop("counts"), "splits": manifest.pop("splits")}
    source = open_source(config)
    record = manifest | {"positions": [0] * len(source.parts), "parts": {"0": part}}
    (scratch / "progress.json").write_bytes(damaged(data, json.dumps(record).encode()))
    accepted(lambda: unfinished(scratch, config, source), scratch)
    (scratch / "progress.json").write_text(json.dumps(record | {"parts": {}}))
    (scratch / "part-00000.json").write_bytes(damaged(data, json.dumps(part).encode()))
    found, message = accepted(lambda: unfinished(scratch, config, source), scratch)
    assert found is not None and (found["parts"] == {} or found["parts"]["0"].keys() >= part.keys()), message


@fuzz(20)
def test_notes_of_what_was_verified(prepared, data):
    file = prepared[1] / VERIFIED
    good = file.read_bytes()
    file.write_bytes(damaged(data, good))
    assert accepted(lambda: load_prepared(file.parent).verify(changed_only=True), file.parent)[1] == ""


@fuzz(10)
def test_a_damaged_shard_is_refused(prepared, data):
    shard = data.draw(st.sampled_from(sorted(prepared[1].glob("*.bin"))))
    good = shard.read_bytes()
    try:
        shard.write_bytes(damaged_bytes(data, good))
        _, message = accepted(lambda: load_prepared(shard.parent).verify(), shard)
        assert message or shard.read_bytes() == good
    finally:
        shard.write_bytes(good)


@fuzz(20)
def test_position_of_a_stream(prepared, small_batches, data):
    config, folder = prepared
    source, tokenizer = open_source(config), (folder / "tokenizer.json").read_text()
    good = {"position": [[[0, 0, 3, 2, 0, 1]]] * 2, "fingerprints": {"files": source.fingerprint()}}
    try:
        saved = json_files.parse(damaged(data, json.dumps(good).encode()))
    except ValueError:
        return

    def read():
        _check_unchanged(saved.get("fingerprints"), good["fingerprints"])
        batches = stream(config, tokenizer, saved)
        batch = next(batches)
        assert batch["tokens"].shape == (2, 5) and batch["tokens"].min() >= 0
        assert batches.position.dtype == np.int64

    accepted(read, "")


@fuzz(20)
def test_metrics_are_read_back(scratch, data):
    lines = [b'{"step": %d, "train_loss": 1.5, "val_loss": 2.5}\n' % step for step in range(4)]
    file = scratch / "metrics.jsonl"
    damage = [line if data.draw(st.integers(0, 2)) else damaged(data, line) + b"\n" for line in lines]
    file.write_bytes(b"".join(damage))
    metrics.JsonlWriter(file, from_step=2).close()
    kept = file.read_bytes().splitlines(keepends=True)
    assert all(type(json.loads(line)["step"]) is int and json.loads(line)["step"] <= 2 for line in kept)
    assert {line for line, was in zip(lines[:3], damage) if line == was} <= set(kept)
    if data.draw(st.integers(0, 3)) == 0:  # drawing takes long
        file.write_bytes(b"".join(damage))
        perplexity_curve(file, scratch / "curve.svg")


@fuzz(30)
def test_any_json(scratch, data):
    """Whatever Python's own parser says: an object that can be written as JSON again, or one line of an error."""
    file = scratch / "any.json"
    file.write_bytes(damaged(data, json.dumps({"a": [1, 2.5, {"b": None}], "c": "é"}).encode()))
    value, _ = accepted(lambda: json_files.read(file, "cannot be read", "fetch it again"), file)
    if value is not None:
        assert json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode()) == value

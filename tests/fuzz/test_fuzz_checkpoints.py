"""Sealed checkpoints with bytes changed in any file: what is read is what was saved, or the file is named."""

import functools
import json
import shutil

import pytest
from hypothesis import strategies as st
from mutations import accepted, damaged_bytes, damaged_json, fuzz

import gpt2_jax
from gpt2_jax.config import CheckpointConfig
from gpt2_jax.training import seal
from gpt2_jax.training.checkpoint import Checkpoints
from gpt2_jax.training.checkpoint_writer import CheckpointWriter

ITEMS = ("model", "training", "config", "tokenizer", "stream")


@pytest.fixture
def copy(workdir, tmp_path):
    """A copy of the run, and the files of its second step."""
    folder = shutil.copytree(workdir, tmp_path / "run")
    return folder, sorted(path for path in (folder / "checkpoints" / "2").rglob("*") if path.is_file())


@fuzz(20)
def test_any_byte_of_any_file(workdir, small, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    if not folder.exists():
        shutil.copytree(workdir, folder)
    files = sorted(path for path in (folder / "checkpoints" / "2").rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files))
    good = file.read_bytes()
    content = bytearray(good)
    at = data.draw(st.integers(0, len(good) - 1))
    content[at] = data.draw(st.integers(0, 255))
    name = file.relative_to(folder / "checkpoints" / "2").as_posix()
    try:
        file.write_bytes(content)
        what = seal.damage(folder / "checkpoints" / "2", ITEMS)
        if what:
            assert name in what or name in (seal.MANIFEST, seal.METADATA)
        else:  # what is not under the seal says nothing of the state
            unsealed = name.startswith("metrics/") or name in (seal.MANIFEST, seal.METADATA, seal.NAMED)
            assert unsealed or bytes(content) == good, name

            def read():
                with Checkpoints(folder) as checkpoints:
                    assert checkpoints.find() == 2
                    return checkpoints.read_json(2), checkpoints.read_stream(2)

            found, _ = accepted(read, folder)
            assert (
                found is None
                or found[0][1] == json.loads((files_of(workdir) / "tokenizer/metadata").read_text())["tokenizer.json"]
            )
    finally:
        file.write_bytes(good)


def files_of(folder):
    return folder / "checkpoints" / "2"


@fuzz(30)
def test_seals(workdir, tmp_path_factory, data):
    """A manifest and Orbax's own metadata: any JSON gives a word of what is wrong, or none, in an instant."""
    folder = tmp_path_factory.getbasetemp() / "seals"
    if not folder.exists():
        shutil.copytree(files_of(workdir), folder)
    file = folder / data.draw(st.sampled_from([seal.MANIFEST, seal.METADATA]))
    good = file.read_bytes()
    try:
        file.write_bytes((damaged_json if data.draw(st.integers(0, 3)) else damaged_bytes)(data, good))
        what = seal.damage(folder, ITEMS)
        assert isinstance(what, str) and "\n" not in what and len(what) < 2000
    finally:
        file.write_bytes(good)
    assert seal.damage(folder, ITEMS) == ""


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("model/../../../../../../../../dev/zero", {"bytes": 0, "sha256": ""}, "manifest.json is missing or cannot be"),
        ("/dev/zero", {"bytes": 0, "sha256": ""}, "manifest.json is missing or cannot be read"),
        ("model", {"bytes": 0, "sha256": ""}, "model is no file"),
        ("model/x", {"bytes": "1", "sha256": ""}, "manifest.json is missing or cannot be read"),
        ("model/x", {"bytes": 1, "sha256": ""}, r"model/x cannot be read \(No such file or directory\)"),
    ],
)
def test_a_manifest_that_leads_elsewhere(name, entry, message, copy):
    folder = files_of(copy[0])
    manifest = json.loads((folder / seal.MANIFEST).read_text())
    (folder / seal.MANIFEST).write_text(json.dumps(manifest | {"files": manifest["files"] | {name: entry}}))
    assert seal.damage(folder, ITEMS).startswith(message.replace("\\", "")[:30])


def test_files_that_no_seal_knows(copy):
    folder = files_of(copy[0])
    (folder / "model" / "more").write_text("x")
    assert seal.damage(folder, ITEMS) == "model/more is not in manifest.json"
    (folder / "model" / "more").unlink()
    (folder / seal.MANIFEST).write_text('{"files": {}}')
    assert seal.damage(folder, ITEMS).endswith(" is not in manifest.json")
    metadata = (folder / seal.METADATA).read_text()
    (folder / seal.METADATA).write_text(metadata.replace('"format"', '"farmat"'))
    assert seal.damage(folder, ITEMS) == "_CHECKPOINT_METADATA tells no format, and there is a manifest.json"


@pytest.mark.parametrize("metrics", ["{", "[]", '{"val_loss": "x"}', '{"val_loss": NaN}', "[" * 100_000])
def test_damaged_metrics_cost_the_word_best_alone(metrics, copy, caplog):
    (files_of(copy[0]) / "metrics" / "metrics").write_text(metrics)
    told = []
    for opened in (Checkpoints, functools.partial(CheckpointWriter, config=CheckpointConfig())):
        with opened(copy[0]) as checkpoints:
            assert checkpoints.find() == 2
            assert checkpoints.find("best", told.append) == 1
    assert "the metrics of step 2 in " in told[0] and told[0].endswith(" are damaged: it is not taken for the best")


def test_metrics_that_are_not_those_saved_make_no_best(copy):
    (files_of(copy[0]) / "metrics" / "metrics").write_text('{"val_loss": 0.001}')
    with pytest.raises(gpt2_jax.InputError, match=r"step 2 .* is damaged \(metrics/metrics .*\); it also has 1"):
        gpt2_jax.load(copy[0], step="best")


@pytest.mark.parametrize("metadata", ["[]", "[" * 100_000, '{"custom_metadata": {"format": 1}, "more": 1}'])
def test_metadata_that_orbax_fails_at_are_named(metadata, copy):
    folder = files_of(copy[0])
    (folder / seal.METADATA).write_text(metadata)
    what = "its folder" if "more" in metadata else folder
    with pytest.raises(gpt2_jax.InputError, match=rf"cannot be opened .*: move {what} elsewhere, and the others are"):
        gpt2_jax.load(copy[0])


def reseal(folder):
    """As one who wants to harm would."""
    (folder / seal.MANIFEST).unlink()
    metadata = (folder / seal.METADATA).read_bytes()
    (folder / seal.METADATA).unlink()
    named = (folder / seal.NAMED).read_bytes()
    (folder / seal.NAMED).unlink()
    seal.seal(folder)
    (folder / seal.METADATA).write_bytes(metadata)
    (folder / seal.NAMED).write_bytes(named)


@pytest.mark.parametrize(
    ("item", "content", "message"),
    [
        (
            "config",
            {"model": {"n_embd": 8}},
            r"has h\.attn\.c_attn\.bias of shape \(1, 3, 4\), and its config asks",
        ),
        (
            "config",
            {"model": {"n_embd": 2**31 - 2}},
            r"and its config asks for \(1, 3, 2147483646\); if the config",
        ),
        ("config", {"model": {"n_layer": 2**31 - 1}}, r"its config asks for \(2147483647, 3, 4\)"),
        (
            "config",
            {"model": {"vocab_multiple": 2**31 - 1}},
            r"has wte\.embedding of shape \(384, 4\), and its co",
        ),
        ("config", {"model": {"tie_word_embeddings": False}}, r"has lm_head\.embedding of shape None, and its config"),
        ("config", {"model": []}, r"config\.model is \[\]; it must be a group of options"),
        ("config", [], r"is no part of a checkpoint \(it holds a list and no object\); use another checkpoint"),
        ("tokenizer", {}, "has the tokenizer None, and it must be the text of a tokenizer.json"),
        ("tokenizer", {"tokenizer.json": "{}"}, "is not a tokenizer.json: Model missing"),
    ],
)
def test_sealed_anew_with_other_contents(item, content, message, copy, small):
    folder = files_of(copy[0])
    file = folder / item / "metadata"
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        saved = json.loads(file.read_text())
        content = saved | {"model": saved["model"] | content["model"]}
    file.write_text(json.dumps(content))
    reseal(folder)
    assert seal.damage(folder, ITEMS) == ""
    with pytest.raises(gpt2_jax.InputError, match=message):
        gpt2_jax.load(copy[0])

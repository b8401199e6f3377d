"""Runs with images: text alone as before, a mixture, going on, other meshes, adapters, starts, and scripts of a run."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_runs import use_devices

import gpt2_jax
from gpt2_jax import InputError
from gpt2_jax.config import Config, MeshConfig
from gpt2_jax.evaluation import tasks
from gpt2_jax.evaluation.captioning import Chosen, write
from gpt2_jax.evaluation.outcome import Settings
from gpt2_jax.image_language_model import ImageLanguageModel
from gpt2_jax.model import GPT2
from gpt2_jax.sharding import make_mesh, on_mesh
from gpt2_jax.training import adapted, loop
from gpt2_jax.training import step as steps
from gpt2_jax.training.loss import cross_entropy
from gpt2_jax.training.program import Program
from gpt2_jax.training.start import open_start

TEXT = "the quick brown fox jumps over the lazy dog; it was the best of times; " * 40
IMAGE = {"source": "digits", "share": 0.5, "size": 8, "channels": 1, "patch_size": 4, "n_embd": 16, "n_layer": 1,
         "n_head": 2, "prefix_length": 3, "shift": 1}  # fmt: skip


def options(folder, count, **groups):
    """Half of the rows are images, and half text; 1 layer each."""
    if not (folder / "mine.txt").exists():
        (folder / "mine.txt").write_text(TEXT)
    config = {
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 0, "resid_pdrop": 0.1},
        "image": IMAGE,
        "data": {"source": "files", "paths": str(folder / "mine.txt"), "tokenizer": "characters",
                 "validation_fraction": 0.2},
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 0},
        "training": {"steps": count, "batch_size": 16, "log_every": 1, "sample_tokens": 0},
        "evaluation": {"every": 100, "windows": 16}, "finetune": {}, "mesh": {},
    }  # fmt: skip
    return {name: group | groups.get(name, {}) for name, group in config.items()}


def lines(workdir, key):
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {record["step"]: record[key] for record in records if key in record}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(folder, a run of 8 steps on one device, one that was stopped after 5 and went on, one on 8 devices)."""
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_devices(monkeypatch, jax.devices()[:1])
        loop.train(options(folder, 8), folder / "straight")
        loop.train(options(folder, 5), folder / "stopped")
        loop.train(options(folder, 8), folder / "stopped")
        use_devices(monkeypatch, jax.devices())
        mesh = {"data": 2, "fsdp": 2, "model": 2}
        loop.train(options(folder, 2, mesh=mesh), folder / "meshed")
    return folder, *(folder / name for name in ("straight", "stopped", "meshed"))


def test_both_losses_fall(runs):
    _, straight, _, _ = runs
    for name in ("files", "captions"):
        losses = lines(straight, f"val_loss/{name}")
        assert losses[8] < losses[0] - 0.3, name


def test_it_goes_on_bit_for_bit(runs):
    _, straight, stopped, _ = runs
    assert lines(straight, "train_loss") == lines(stopped, "train_loss")
    one, other = gpt2_jax.load(straight), gpt2_jax.load(stopped)
    assert isinstance(one, ImageLanguageModel) and jax.tree.structure(one.model) == jax.tree.structure(other.model)
    jax.tree.map(np.testing.assert_array_equal, one.model, other.model)


def test_losses_do_not_depend_on_the_mesh(runs):
    _, straight, _, meshed = runs
    wanted, got = lines(straight, "train_loss"), lines(meshed, "train_loss")
    assert [got[step] for step in (1, 2)] == pytest.approx([wanted[step] for step in (1, 2)], rel=1e-5)


def test_held_out_captions_are_evaluated(runs):
    _, straight, _, _ = runs
    lm = gpt2_jax.load(straight)
    outcome = tasks.find("captions").run(lm, settings=Settings(batch_size=32, limit=40))
    assert outcome.counts["images"] == 40 and outcome.counts["tokens"] > 40 * 16
    written = list(write(lm, Chosen(limit=40)))
    assert outcome.figures["exact_match"].value == np.mean([one.right for one in written])
    nats = -sum(own.sum() for own in lm.caption_logprobs([o.pixels for o in written], [o.wanted[0] for o in written]))
    perplexity = outcome.figures["token_perplexity"]
    assert perplexity.value == pytest.approx(np.exp(nats / outcome.counts["tokens"]), rel=1e-4)
    assert 0 < perplexity.error < 1
    with pytest.raises(InputError, match=r"the model reads no images; give a run that was trained with image\.source"):
        list(write(lm.text_model(), Chosen()))


def test_text_alone_compiles_to_the_same_program(tmp_path, monkeypatch):
    """Byte for byte what a loss without images lowers to."""
    config = Config.from_dict({name: group for name, group in options(tmp_path, 5).items() if name != "image"})
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=40))
    batch = {"tokens": jax.ShapeDtypeStruct((16, 33), jnp.int32), "mask": jax.ShapeDtypeStruct((16, 32), jnp.bool)}
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])

    def lowered():
        program = Program.of(config, mesh)
        return on_mesh(mesh, program.train_step.lower)(program.shapes, batch).as_text()

    def plain(model, batch, *, key=None, chunks=1):
        inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        x = model.hidden(inputs, key=key, segments=batch.get("segments"), positions=batch.get("positions"))
        return cross_entropy(model.head(x), targets, batch["mask"])

    now = lowered()
    monkeypatch.setattr(steps, "sum_of_losses", plain)
    assert now == lowered() and "ui8" not in now


def test_a_start_is_its_gpt2_and_may_stay_frozen(runs, tmp_path, monkeypatch):
    """Of a run with images the GPT-2 starts another; frozen, it stays as it is to the bit while images are learnt."""
    folder, straight, _, _ = runs
    start = open_start(str(straight))
    assert type(start.load(start.config, make_mesh(MeshConfig(), jax.devices()[:1]))) is GPT2
    use_devices(monkeypatch, jax.devices()[:1])
    groups = {
        "data": {"tokenizer": "start"}, "image": {"share": 1.0, "prefix_length": 2},
        "finetune": {"start": str(straight), "freeze": r"^(wte|wpe|h|ln_f)\."},
    }  # fmt: skip
    loop.train(options(folder, 3, **groups), tmp_path / "frozen")
    tuned, base = gpt2_jax.load(tmp_path / "frozen"), gpt2_jax.load(straight)
    jax.tree.map(np.testing.assert_array_equal, tuned.text_model().model, base.text_model().model)
    losses = lines(tmp_path / "frozen", "val_loss")
    assert losses[3] < losses[0]
    assert not (tmp_path / "frozen" / "data").exists()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"training": {"sequence_length": 3}}, r"training\.sequence_length is 3; it must be above 3, the positions of"),
        ({"mesh": {"sequence": 2}}, r"mesh\.sequence is 2, which would cut images in pieces; leave it at 1"),
        (
            {"mesh": {"data": 2, "model": 4}, "model": {"n_head": 4}},
            r"image\.n_head is 2; it must be a multiple of",
        ),
        ({"image": {"share": 0.01}}, r"image\.share is 0\.01; it must be such that of training\.batch_size"),
        (
            {"image": {"share": 1.0}, "data": {"control_codes": True}},
            r"data\.control_codes is True; it must be False where all rows are images",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, groups, message):
    with pytest.raises(InputError, match=message):
        loop.train(options(tmp_path, 2, **groups), tmp_path / "run")


def test_adapters_alone_would_not_read_images():
    image = {name: value for name, value in IMAGE.items() if name != "share"}
    groups = {"image": image, "finetune": {"start": "a"}, "data": {"tokenizer": "start"}, "lora": {"rank": 2}}
    with pytest.raises(InputError, match=r"prefix\.c_proj\.kernel and vision\.patch\.kernel would never be learnt; tr"):
        adapted.check_images_trained(Config.from_dict(groups))
    adapted.check_images_trained(Config.from_dict(groups | {"lora": {"rank": 2, "also_train": "^(vision|prefix)"}}))


def test_other_images_are_refused(runs, monkeypatch):
    folder, straight, _, _ = runs
    record = straight / "images.json"
    saved = record.read_text()
    record.write_text(re.sub(r'"images": 1797', '"images": 1796', saved))
    use_devices(monkeypatch, jax.devices()[:1])
    with pytest.raises(InputError, match=r"the images, 1,797 now and 1796 when this run began, .* have changed; put"):
        loop.train(options(folder, 8), straight)
    record.write_text(saved)


def test_the_script_captions_and_explains(runs, pytestconfig, tmp_path):
    _, straight, _, _ = runs

    def script(*arguments):
        command = [sys.executable, str(pytestconfig.rootpath / "scripts/caption.py"), f"--model={straight}", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    done = script("--held_out", "--limit=5", f"--picture={tmp_path / 'all.png'}")
    assert done.returncode == 0 and "of 5 captions are right" in done.stdout, done.stderr
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
    bad = script("--prompt=a")
    assert bad.returncode == 2 and "there is no --image; give one or more, or --held_out, or --data" in bad.stderr

"""A run that starts from a model: its first loss, what stays frozen, going on without the start, exporting."""

import dataclasses
import json
import shutil
from pathlib import Path
from runpy import run_path

import jax
import numpy as np
import optax
import pytest
from short_runs import use_devices

import gpt2_jax
from gpt2_jax import InputError, LanguageModel
from gpt2_jax.config import CheckpointConfig, Config, DataConfig, MeshConfig
from gpt2_jax.data import dataset
from gpt2_jax.data.prepare import prepare
from gpt2_jax.data.prepared import load_prepared
from gpt2_jax.model import GPT2, unstack
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.sharding import make_mesh
from gpt2_jax.tokenizer_training import train_bpe, train_characters
from gpt2_jax.topology.process import config_of
from gpt2_jax.training import loop
from gpt2_jax.training.changes import differences
from gpt2_jax.training.checkpoint import Checkpoints
from gpt2_jax.training.checkpoint_writer import CheckpointWriter
from gpt2_jax.training.start import open_start
from gpt2_jax.training.step import eval_step, init_state

TEXT = "it was the best of times, it was the worst of times; " * 40
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32}


@pytest.fixture(scope="module")
def lm():
    """A model of characters whose logits differ."""
    tokenizer = train_characters([TEXT + "xyz"])
    config = GPT2Config(vocab_size=len(tokenizer), initializer_range=0.2, **SIZES)
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(1)), tokenizer)


def options(folder, start, steps, **groups):
    """A fine-tuned run of seconds, on a mesh of 8 devices; its context is half of the start's."""
    if not (folder / "mine.txt").exists():
        (folder / "mine.txt").write_text(TEXT)
    config = {
        "model": {"n_positions": 16, "vocab_size": 0, "resid_pdrop": 0.1},
        "data": {"source": "files", "paths": str(folder / "mine.txt"), "tokenizer": "start", "control_codes": True,
                 "validation_fraction": 0.2},
        "finetune": {"start": str(start), "freeze": r"^wpe|mlp", "layer_decay": 0.5},
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 0},
        "training": {"steps": steps, "batch_size": 8, "log_every": 1, "sample_tokens": 0},
        "mesh": {"data": 2, "fsdp": 2, "model": 2},
    }  # fmt: skip
    return {name: group | groups.get(name, {}) for name, group in config.items()}


@pytest.fixture(scope="module")
def runs(lm, tmp_path_factory):
    """(folder of a straight run, of one that went on when its start was gone), both of 4 steps."""
    folder = tmp_path_factory.mktemp("finetuned")
    start = gpt2_jax.save(lm, folder / "flax", "flax")
    loop.train(options(folder, start, 4), folder / "straight")
    loop.train(options(folder, start, 2), folder / "stopped")
    shutil.rmtree(start)
    loop.train(options(folder, start, 4), folder / "stopped")
    return folder / "straight", folder / "stopped"


def lines(workdir, name):
    read = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in read if name in line}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(a), jax.tree.leaves(b))


def test_the_first_loss_is_the_start_s(lm, runs):
    """That of a vocabulary with one entry more, the control code, whose row is the mean of the others."""
    prepared = load_prepared(runs[0] / "data")
    assert len(prepared.tokenizer) == len(lm.tokenizer) + 1 and prepared.tokenizer.extends(lm.tokenizer)
    model = gpt2_jax.resize(lm.model, vocab_size=len(prepared.tokenizer), n_positions=16)
    batches = list(dataset.evaluation_batches(prepared, batch_size=8, sequence_length=16))
    sums = [jax.jit(eval_step)(model, batch) for batch in batches]
    loss = sum(float(s["loss"]) for s in sums) / sum(int(s["count"]) for s in sums)
    assert lines(runs[0], "val_loss")[0] == pytest.approx(loss, rel=1e-5)
    assert lines(runs[0], "val_loss")[4] < loss - 0.1


def test_it_goes_on_bit_for_bit_when_the_start_is_gone(runs):
    assert lines(runs[1], "train_loss") == lines(runs[0], "train_loss")
    assert_same(gpt2_jax.load(runs[0]).model, gpt2_jax.load(runs[1]).model)


def test_sizes_are_the_start_s_and_frozen_parameters_too(lm, runs):
    model = gpt2_jax.load(runs[0]).model
    config = model.config
    assert (config.n_layer, config.n_embd, config.n_positions) == (2, 16, 16)
    assert config.vocab_size == lm.config.vocab_size + 1 and config.initializer_range == 0.2
    np.testing.assert_array_equal(model.wpe.embedding[...], lm.model.wpe.embedding[:16])
    for mine, theirs in zip(model.h, lm.model.h):
        assert_same(mine.mlp, theirs.mlp)
        assert (np.asarray(mine.attn.c_attn.weight) != theirs.attn.c_attn.weight[...]).any()
    log = (runs[1] / "train.log").read_text()
    assert "h.mlp.c_fc.kernel" in log


def test_an_export_opens_again_with_the_same_logits(runs, tmp_path):
    finetuned = gpt2_jax.load(runs[0])
    again = gpt2_jax.load(gpt2_jax.save(finetuned, tmp_path / "out", "flax"))
    tokens = np.arange(12)[None]
    np.testing.assert_array_equal(again.model(tokens), finetuned.model(tokens))
    assert again.tokenizer.to_json() == finetuned.tokenizer.to_json()


def test_another_start_is_another_run(runs):
    config = json.loads((runs[0] / "config.json").read_text())
    other = config | {"finetune": config["finetune"] | {"start": "elsewhere"}}
    (difference,) = differences(config, other)
    assert difference.startswith("finetune.start (") and difference.endswith("'elsewhere' here)")


@pytest.fixture(scope="module")
def workdir(lm, tmp_path_factory):
    """A run with three checkpoints; that of step 1 has the lowest validation loss, that of step 3 none."""
    folder = tmp_path_factory.mktemp("run")
    config = Config.from_dict({"model": dataclasses.asdict(lm.config) | {"vocab_multiple": 8}})
    state = jax.jit(lambda: init_state(config.model, optax.identity(), 0))()
    with CheckpointWriter(folder, CheckpointConfig(keep=3)) as checkpoints:
        for step, loss in ((1, 1.0), (2, 2.0), (3, None)):
            model = jax.tree.map(lambda x, step=step: x + step, state.model)
            saved = state._replace(step=np.int32(step), model=model)
            checkpoints.save(saved, config.to_dict(), lm.tokenizer.to_json(), loss)
    return folder


@pytest.mark.parametrize(("which", "step"), [("", 1), ("@best", 1), ("@latest", 3), ("@2", 2)])
def test_which_checkpoint_of_a_run(workdir, which, step):
    assert open_start(f"{workdir}{which}").name == f"step {step} of {workdir}"


def test_a_checkpoint_of_a_run_on_a_mesh(workdir):
    start = open_start(f"{workdir}@2")
    mesh = make_mesh(MeshConfig(2, 2, 2))
    config = dataclasses.replace(start.config, vocab_size=40, n_positions=20, vocab_multiple=128)
    model = start.load(config, mesh)
    assert model.config == config
    want = gpt2_jax.load(workdir, step=2).model
    assert_same(unstack(model).h, want.h)
    got, rows = np.asarray(model.wte.embedding[...]), len(start.tokenizer)
    assert got.shape == (128, 16) and (got[40:] == 0).all()
    np.testing.assert_array_equal(got[:rows], want.wte.embedding[:rows])
    np.testing.assert_allclose(got[rows:40], np.tile(want.wte.embedding[:rows].mean(0), (40 - rows, 1)), rtol=1e-5)
    np.testing.assert_array_equal(model.wpe.embedding[...], want.wpe.embedding[:20])
    shards = model.h.mlp.c_fc.kernel[...].addressable_shards
    assert {shard.data.shape for shard in shards} == {(2, 8, 32)}


def test_a_hub_id_with_a_revision(lm, tmp_path, monkeypatch):
    folder = gpt2_jax.save(lm, tmp_path / "there")
    asked = []
    monkeypatch.setattr(gpt2_jax.pretrained, "fetch", lambda name, revision: asked.append((name, revision)) or folder)
    for name in ("owner/name", "owner/name@607a30d"):
        assert open_start(name).config == lm.config
    assert asked == [("owner/name", None), ("owner/name", "607a30d")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/nothing/there", "there is no folder or file 'runs/nothing/there'; give the workdir of a training run"),
        ("owner/name@", "finetune.start is 'owner/name@'; before and after its @ there must be something"),
        ("{workdir}@worst", "finetune.start is {workdir}@worst; after the @ of a run there must be a step, 'best'"),
        ("{workdir}@7", "{workdir}/checkpoints has no checkpoint 7; it has 1, 2, 3"),
        ("{workdir}/checkpoints@7", "but {workdir}/checkpoints is no training run; only runs have checkpoints"),
    ],
)  # fmt: skip
def test_what_is_no_start_is_refused(workdir, name, message):
    with pytest.raises(InputError) as raised:
        open_start(name.format(workdir=workdir))
    assert message.format(workdir=workdir) in str(raised.value)


def test_other_sizes_are_refused_with_both_values(workdir):
    start = open_start(str(workdir))
    assert start.sized({"model": {"n_layer": 12, "n_embd": 16}})["model"]["n_layer"] == 2  # a default and theirs
    with pytest.raises(InputError) as raised:
        start.sized({"model": {"n_layer": 6, "n_positions": 64, "vocab_size": 4, "dtype": "bfloat16"}})
    wanted = "of other sizes: model.n_positions (32 there, 64 here), model.n_layer (2 there, 6 here), model.vocab_si"
    assert wanted in str(raised.value) and "dtype" not in str(raised.value)


def test_a_compilation_elsewhere_has_the_start_s_sizes(workdir, lm):
    options = {"finetune": {"start": str(workdir)}, "data": {"tokenizer": "start"}, "model": {"vocab_size": 0}}
    model = config_of({**options, "training": {"sequence_length": 16}}).model
    assert (model.n_layer, model.n_positions, model.vocab_size) == (2, 32, lm.config.vocab_size)


def test_a_tokenizer_of_other_ids_is_refused(workdir):
    start = open_start(str(workdir))
    start.check_fits(start.tokenizer.with_special_tokens(["<|poem|>"]), "mine.json")
    with pytest.raises(InputError, match=r"data.tokenizer is 'mine.json', and gives other ids"):
        start.check_fits(train_characters(["other"]), "mine.json")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"finetune": {"start": "x"}}, "data.tokenizer is 'bpe'; it must be 'start', that of the model, or one that"),
        ({"data": {"tokenizer": "start"}}, "data.tokenizer is 'start'; it must be 'bpe', 'characters', a tokenizer.j"),
    ],
)
def test_start_and_tokenizer_go_together(groups, message):
    with pytest.raises(InputError, match=message):
        Config.from_dict(groups)


def test_a_tokenizer_that_the_model_has_no_room_for_is_refused(lm, tmp_path):
    folder = gpt2_jax.save(lm, tmp_path / "there")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 3}))
    with pytest.raises(InputError, match=r"entries and the model 3; they do not belong together"):
        open_start(str(folder))


def test_tokens_are_of_the_start_s_tokenizer_alone(lm, tmp_path):
    (tmp_path / "mine.txt").write_text(TEXT)
    config = DataConfig(source="files", paths=str(tmp_path / "mine.txt"), tokenizer="start")
    with pytest.raises(InputError, match=r"data.tokenizer is 'start', which only a run with finetune.start has; give"):
        prepare(config, tmp_path / "out", progress=lambda _: None)
    prepare(config, tmp_path / "out", start=lm.tokenizer, progress=lambda _: None)
    with pytest.raises(InputError, match=r"holds tokens of another corpus: the tokenizer of the start changed; delete"):
        prepare(config, tmp_path / "out", start=train_characters([TEXT]), progress=lambda _: None)


COLORS, VERBS = ("red", "rare", "wild", "dear"), ("blow", "fade", "sigh")
POEMS = [f"roses are {color}\nviolets {verb}\n" for color in COLORS for verb in VERBS]


def few_shot(start, paths):
    file = Path(__file__).parents[2] / "configs/finetune.py"
    config = run_path(str(file))["get_config"]("text").to_dict()
    config["finetune"]["start"], config["data"]["paths"] = str(start), str(paths)
    config["training"] |= {"steps": 2, "sequence_length": 32, "sample_tokens": 0}
    config["evaluation"]["every"] = config["checkpoint"]["every"] = 1
    config["optimizer"]["warmup_steps"] = 0
    return config


@pytest.fixture(scope="module")
def small_gpt2(tmp_path_factory):
    """A folder in the hub's layout, of byte-level BPE."""
    tokenizer = train_bpe(POEMS, 270)
    config = GPT2Config(vocab_size=len(tokenizer), **SIZES)
    lm = LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)
    return gpt2_jax.save(lm, tmp_path_factory.mktemp("hub") / "gpt2")


def test_a_dozen_poems_are_enough(small_gpt2, tmp_path, monkeypatch):
    (tmp_path / "poems").mkdir()
    for i, poem in enumerate(POEMS):
        (tmp_path / "poems" / f"{i}.txt").write_text(poem)
    use_devices(monkeypatch, jax.devices()[:1])
    outcome = loop.train(few_shot(small_gpt2, tmp_path / "poems"), tmp_path / "run")
    assert outcome.step == 2 and outcome.best[0] in (1, 2)
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.best == outcome.best[0]


def test_less_than_a_window_is_refused_with_the_option_to_change(small_gpt2, tmp_path, monkeypatch):
    (tmp_path / "poem.txt").write_text(POEMS[0])
    use_devices(monkeypatch, jax.devices()[:1])
    with pytest.raises(InputError, match=r"training split has (\d+) tokens; .* use --config.training.sequence_length="):
        loop.train(few_shot(small_gpt2, tmp_path / "poem.txt"), tmp_path / "run")

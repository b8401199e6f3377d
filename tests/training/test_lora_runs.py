"""Runs that train adapters alone: what they save, going on, other bases, and PEFT's files of them."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_start import SIZES, TEXT, assert_same, lines, lm  # noqa: F401

import gpt2_jax
from gpt2_jax import InputError, lora
from gpt2_jax.config import Config, MeshConfig
from gpt2_jax.exporting import save_adapter
from gpt2_jax.fingerprint import fingerprint
from gpt2_jax.model import GPT2, parameter_names
from gpt2_jax.sharding import global_batch, make_mesh, on_mesh
from gpt2_jax.training import loop
from gpt2_jax.training.program import Program
from gpt2_jax.training.start import open_start


def options(folder, start, steps, **groups):
    """A run of seconds on 8 devices, whose control code is a new row of the embedding."""
    (folder / "mine.txt").exists() or (folder / "mine.txt").write_text(TEXT)
    config = {
        "model": {"vocab_size": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "data": {"source": "files", "paths": str(folder / "mine.txt"), "tokenizer": "start", "control_codes": True,
                 "validation_fraction": 0.2},
        "finetune": {"start": str(start)},
        "lora": {"rank": 2, "dropout": 0.1, "targets": "c_attn|mlp", "also_train": "wte"},
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 0},
        "training": {"steps": steps, "batch_size": 8, "sequence_length": 16, "accumulation_steps": 2, "log_every": 1,
                     "sample_tokens": 4},
        "mesh": {"data": 1, "fsdp": 2, "model": 2, "sequence": 2},
    }  # fmt: skip
    return {name: group | groups.get(name, {}) for name, group in config.items()}


@pytest.fixture(scope="module")
def runs(lm, tmp_path_factory):  # noqa: F811
    """(folder of all, workdir of a run of 4 steps, of one that was stopped after 2 and whose base has moved since)."""
    folder = tmp_path_factory.mktemp("adapted")
    start = gpt2_jax.save(lm, folder / "base")
    loop.train(options(folder, start, 4), folder / "straight")
    loop.train(options(folder, start, 2), folder / "stopped")
    moved = shutil.copytree(start, folder / "moved")
    loop.train(options(folder, moved, 4), folder / "stopped")
    return folder, folder / "straight", folder / "stopped"


def test_it_goes_on_bit_for_bit(runs):
    _, straight, stopped = runs
    assert lines(straight, "train_loss") == lines(stopped, "train_loss")
    assert lines(straight, "val_loss")[4] < lines(straight, "val_loss")[0] - 0.1
    assert_same(gpt2_jax.load(straight).model, gpt2_jax.load(stopped).model)


def test_a_checkpoint_holds_what_is_trained_alone(runs, lm):  # noqa: F811
    folder, straight, _ = runs
    metadata = (straight / "checkpoints" / "4" / "model" / "_METADATA").read_text()
    stored = {
        ".".join(key["key"] for key in entry["key_metadata"])
        for entry in json.loads(metadata)["tree_metadata"].values()
        if entry["value_metadata"]["value_type"] != "None"
    }
    layers = ("h.attn.c_attn", "h.mlp.c_fc", "h.mlp.c_proj")
    adapters = {f"{layer}.lora_{which}.value" for layer in layers for which in "ab"}
    assert stored == adapters | {"wte.embedding.value"}
    base = gpt2_jax.load(folder / "base").model
    tuned = gpt2_jax.load(straight).model
    assert_same((tuned.ln_f, tuned.wpe, tuned.h[0].attn.c_proj), (base.ln_f, base.wpe, base.h[0].attn.c_proj))
    assert np.abs(tuned.h[1].mlp.c_fc.weight - base.h[1].mlp.c_fc.weight).max() > 1e-3


def test_another_base_is_refused(runs, lm):  # noqa: F811
    """Gone, and of other numbers; with what to do."""
    folder, _, stopped = runs
    again = lambda start: loop.train(options(folder, start, 6), stopped)
    with pytest.raises(
        InputError, match=r"the checkpoint of step 4 in .* holds adapters alone, and the model that they"
    ):
        again(folder / "nowhere")
    other = dataclasses.replace(lm.config)
    changed = gpt2_jax.LanguageModel(jax.jit(GPT2, static_argnums=0)(other, jax.random.key(7)), lm.tokenizer)
    gpt2_jax.save(changed, folder / "other")
    with pytest.raises(InputError, match=r"other is another model than the one that the adapters of .* \(fingerprint"):
        again(folder / "other")
    aside = shutil.move(folder / "moved", folder / "aside")
    try:
        with pytest.raises(InputError, match=r"cannot be opened \(there is no folder or file .*moved'; give .* bring"):
            gpt2_jax.load(stopped)
    finally:
        shutil.move(aside, folder / "moved")


def test_peft_files_of_a_run(runs):
    folder, straight, _ = runs
    tuned = gpt2_jax.load(straight)
    written = save_adapter(straight, folder / "adapter")
    assert json.loads((written / "adapter_config.json").read_text())["modules_to_save"] == ["lm_head", "wte"]
    opened = gpt2_jax.load(folder / "base", adapter=written)
    assert len(opened.tokenizer) == opened.config.vocab_size == tuned.config.vocab_size
    assert_same(opened.model, tuned.model)
    whole = gpt2_jax.load(gpt2_jax.save(tuned, folder / "whole"))
    assert_same(whole.model, tuned.model)
    with pytest.raises(InputError, match=r"straight, a training run; load it as it is, or write its adapter as PEFT's"):
        gpt2_jax.load(folder / "base", adapter=straight)


def test_a_run_with_adapters_starts_another(runs):
    _, straight, _ = runs
    mesh, start = make_mesh(MeshConfig(), jax.devices()[:2]), open_start(str(straight))
    merged = lora.merge(start.load(start.config, mesh))
    tuned = gpt2_jax.load(straight).model
    assert_same(gpt2_jax.LanguageModel(merged, start.tokenizer).model, tuned)


def test_new_rows_are_to_be_learnt(runs):
    folder, _, _ = runs
    with pytest.raises(InputError, match=r'train wte.embedding, too: --config.lora.also_train="wte.embedding"'):
        loop.train(options(folder, folder / "base", 2, lora={"also_train": ""}), folder / "unlearnt")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"lora": {"rank": 2}}, "finetune.start is ''; it must be the model that they adapt with lora.rank"),
        (
            {"lora": {"rank": 2}, "finetune": {"start": "x", "freeze": "wte"}, "data": {"tokenizer": "start"}},
            "finetune.freeze is 'wte'; it must be left empty with lora.rank, whose adapters are trained beside what",
        ),
        ({"lora": {"alpha": 2.0}}, "lora.alpha is 2.0; it must be left at 16.0 where lora.rank is 0: no adapters"),
    ],
)
def test_options_that_contradict(groups, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Config.from_dict({"model": {}} | groups)


def adapted(mesh=None, **groups) -> tuple[Config, Program]:
    """A program with adapters on a drawn base."""
    sizes = SIZES | {"vocab_size": 40, "n_head": 8, "n_embd": 32, "resid_pdrop": 0.1, "initializer_range": 0.2}
    adapters = {"lora": {"rank": 2, "targets": ".", "dropout": 0.2}, "finetune": {"start": "x"}}
    config = {
        "model": sizes,
        "data": {"tokenizer": "start"},
        "training": {"batch_size": 8, "sequence_length": 16, "loss_chunks": 2},
        "optimizer": {"learning_rate": 0.03, "warmup_steps": 0},
        "mesh": mesh or {},
        **adapters,
    } | groups
    if not config["lora"]:
        config |= {"data": {}, "finetune": {}}
    config = Config.from_dict(config)
    count = 8 if mesh else 1
    return config, Program.of(config, make_mesh(config.mesh, jax.devices()[:count]))


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return [
        {"tokens": rng.integers(0, 40, (8, 17)).astype(np.int32), "mask": rng.random((8, 16)) < 0.7} for _ in range(3)
    ]


def steps(program, batches):
    state = jax.jit(program.init, out_shardings=program.shardings)()
    begun = jax.tree.map(np.asarray, state.model)
    curve = []
    for batch in batches:
        state, metrics = on_mesh(program.mesh, program.train_step)(state, global_batch(batch, program.mesh))
        curve.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return np.array(curve), begun, state


@pytest.fixture(scope="module")
def reference(batches):
    return steps(adapted()[1], batches)


def test_the_mesh_changes_nothing(reference, batches):
    """With dropout of adapters and of all else, and the loss in chunks; the runs above cut the batch over fsdp."""
    got, _, state = steps(adapted({"data": 2, "fsdp": 1, "model": 2, "sequence": 2})[1], batches)
    np.testing.assert_allclose(got, reference[0], rtol=1e-5)
    assert fingerprint(state.model.wte) == fingerprint(reference[2].model.wte)


def test_what_is_frozen_stays_to_the_bit(reference):
    _, begun, state = reference
    same = jax.tree.map(lambda a, b: np.array_equal(a, b), begun, state.model)
    for name, unchanged in zip(jax.tree.leaves(parameter_names(begun)), jax.tree.leaves(same)):
        assert unchanged != ("lora_" in name), name
    names = jax.tree.leaves(parameter_names(state.opt_state))
    assert not [name for name in names if re.search(r"(mu|nu)\.", name) and "lora_" not in name]
    one = jax.tree.map(jnp.asarray, begun)
    assert fingerprint(one) == fingerprint(begun)
    nudge = lambda name, x: x.at[1, 2, 0, 3].multiply(1 + 1e-7) if name == "h.attn.c_attn.kernel" else x
    assert fingerprint(jax.tree.map(nudge, parameter_names(one), one)) != fingerprint(begun)


def test_a_step_computes_no_gradient_of_the_base(batches):
    """By the compiler's own account, against full fine-tuning."""

    def cost(config, program):
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), program.shapes)
        compiled = on_mesh(program.mesh, program.train_step.lower)(state, batches[0]).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().argument_size_in_bytes

    plain = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    model = SIZES | {"vocab_size": 40, "n_embd": 64, "scan_unroll": 2, "remat": "none"} | plain
    full = cost(*adapted(model=model, lora={}))
    low = cost(*adapted(model=model, lora={"rank": 2}))
    assert low[0] < 0.75 * full[0] and low[1] < 0.45 * full[1]

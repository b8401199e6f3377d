"""What is frozen stays as it is and costs nothing; layer-wise rates are those of the formula."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_runs import OPTIMIZER, run

from gpt2_jax import InputError
from gpt2_jax.config import CheckpointConfig, Config, FinetuneConfig, MeshConfig
from gpt2_jax.model import model_of_shapes, num_parameters, parameter_name
from gpt2_jax.sharding import make_mesh, tree_shardings
from gpt2_jax.training.checkpoint import abstract_state
from gpt2_jax.training.checkpoint_writer import CheckpointWriter
from gpt2_jax.training.flops import flops_per_token
from gpt2_jax.training.optimizer import make_optimizer, make_schedule
from gpt2_jax.training.selection import ALL, at_rates, join, split, trained_mask
from gpt2_jax.training.step import init_state, make_train_step

ONE = jax.devices()[:1]
ATTENTION = FinetuneConfig(train=r"\.attn\.|^ln_f", freeze="bias$")
LAYERED = dataclasses.replace(ATTENTION, freeze_layers=1, layer_decay=0.5)
TRAINED = {"h.attn.c_attn.kernel", "h.attn.c_proj.kernel", "ln_f.scale"}


@pytest.fixture(scope="module")
def small(tiny):
    return dataclasses.replace(tiny, n_layer=2, n_embd=16, n_head=2)


@pytest.fixture(scope="module")
def batches(small):
    rng = np.random.default_rng(0)
    rows = lambda: rng.integers(0, small.vocab_size, (8, 17)).astype(np.int32)
    return [{"tokens": rows(), "mask": rng.random((8, 16)) < 0.9} for _ in range(3)]


def named(tree):
    return {parameter_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


@pytest.fixture(scope="module")
def before(small):
    """The first parameters, by name."""
    return named(jax.jit(lambda: init_state(small, make_optimizer(OPTIMIZER, 100), 0))().model)


@pytest.fixture(scope="module")
def eight(small, batches):
    """(losses, last state) on 8 devices, in parts and chunks."""
    return run(small, batches, mesh=MeshConfig(2, 2, 2), finetune=LAYERED, accumulation_steps=2, loss_chunks=4)


@pytest.fixture(scope="module")
def whole(small, batches):
    """The loss and gradient norm of the first step when all is trained."""
    return run(small, batches[:1], devices=ONE)[0][0]


def test_split_and_join(small):
    model = model_of_shapes(small, stacked=True)
    trained, frozen = split(model, ATTENTION)
    assert named(trained).keys() == TRAINED
    assert named(trained).keys() | named(frozen).keys() == named(model).keys()
    assert num_parameters(trained) + num_parameters(frozen) == num_parameters(model)
    assert jax.tree.structure(join(trained, frozen)) == jax.tree.structure(model)
    whole, nothing = split(model, ALL)
    assert jax.tree.structure(whole) == jax.tree.structure(model) and not jax.tree.leaves(nothing)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_what_is_frozen_has_no_state(small, name):
    tx = make_optimizer(dataclasses.replace(OPTIMIZER, name=name), 100)
    state = jax.eval_shape(functools.partial(init_state, small, tx, 0, ATTENTION))
    of_state = named(state.opt_state)
    assert any("c_attn" in leaf for leaf in of_state)
    assert not [leaf for leaf in of_state if leaf.endswith(("bias", "embedding", "mlp.c_fc.kernel"))]
    jax.eval_shape(make_train_step(tx, make_schedule(OPTIMIZER, 100), finetune=ATTENTION), state, batch_of(8, 16))


def test_what_is_frozen_stays_to_the_bit(eight, before):
    for parameter, x in named(eight[1].model).items():
        assert (np.asarray(x) != before[parameter]).any() == (parameter in TRAINED), parameter


def test_eight_devices_parts_and_chunks_give_the_same_losses(small, batches, eight):
    one, _ = run(small, batches, devices=ONE, finetune=LAYERED)
    curve, state = eight
    np.testing.assert_allclose(curve, one, rtol=1e-5)
    specs = {name: leaf.sharding.spec for name, leaf in named(state.opt_state).items()}
    moments = [spec for name, spec in specs.items() if name.endswith("mu.h.attn.c_attn.kernel")]
    assert moments == [named(state.model)["h.attn.c_attn.kernel"].sharding.spec]


def test_the_gradient_is_that_of_all_without_the_frozen(small, batches, whole):
    """The norm is of what is trained alone, and clipping and the guard see it."""
    squares = 0.0
    for finetune in (ATTENTION, FinetuneConfig(train=r"(wte|wpe|ln_1|ln_2|mlp)|bias$")):
        (loss, norm), *_ = run(small, batches[:1], devices=ONE, finetune=finetune)[0]
        squares += norm**2
    assert loss == pytest.approx(whole[0], rel=1e-6)
    assert squares**0.5 == pytest.approx(whole[1], rel=1e-5)


def batch_of(B, T):
    return {"tokens": jax.ShapeDtypeStruct((B, T + 1), jnp.int32), "mask": jax.ShapeDtypeStruct((B, T), bool)}


def cost(config, finetune):
    """(FLOPs, bytes at the peak beside what goes in and out) of a compiled step, blocks unrolled so that all count."""
    config = dataclasses.replace(config, scan_unroll=config.n_layer, remat="none")
    tx = make_optimizer(OPTIMIZER, 100)
    state = jax.eval_shape(functools.partial(init_state, config, tx, 0, finetune))
    step = make_train_step(tx, make_schedule(OPTIMIZER, 100), finetune=finetune, loss_chunks=4)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch_of(8, 32)).compile()
    memory = compiled.memory_analysis()
    return compiled.cost_analysis()["flops"], memory.temp_size_in_bytes, memory.argument_size_in_bytes


def test_gradients_of_what_is_frozen_are_not_computed(small):
    """Of a matrix's three products, forward and both backward, one is gone; its gradient and moments are, too."""
    config = dataclasses.replace(small, n_embd=64, vocab_size=512)
    all_of_it = cost(config, ALL)
    little = cost(config, FinetuneConfig(train="^ln_f"))
    mlp_frozen = cost(config, FinetuneConfig(freeze=r"mlp.*kernel"))
    tokens, in_mlp = 8 * 32, config.n_layer * 8 * config.n_embd**2
    assert all_of_it[0] - mlp_frozen[0] > 0.95 * 2 * tokens * in_mlp
    assert all_of_it[2] - mlp_frozen[2] == 2 * 4 * in_mlp
    assert little[0] < 0.5 * all_of_it[0] and little[1] < all_of_it[1]
    full = flops_per_token(config, 10**6, 32)
    assert full - flops_per_token(config, 10**6, 32, frozen=in_mlp) == 2 * in_mlp


def test_layers_that_are_frozen_within_a_stack(small, batches, before, whole):
    decaying = dataclasses.replace(OPTIMIZER, weight_decay=0.5)
    finetune = FinetuneConfig(freeze_layers=1)
    curve, state = run(small, batches, devices=ONE, optimizer=decaying, finetune=finetune)
    for name, x in named(state.model).items():
        changed = np.asarray(x) != before[name]
        if name.startswith("h."):
            assert not changed[0].any() and changed[1].any(), name
        else:
            assert changed.any()
    moments = {name: x for name, x in named(state.opt_state).items() if ".nu.h." in f".{name}"}
    assert moments and all((x[0] == 0).all() and (x[1] != 0).any() for x in moments.values())
    assert curve[0, 0] == pytest.approx(whole[0], rel=1e-6) and curve[0, 1] < whole[1]


def test_all_layers_frozen_is_the_pattern_for_them(small):
    model = model_of_shapes(small, stacked=True)
    mask = lambda **options: jax.tree.leaves(trained_mask(model, FinetuneConfig(**options)))
    assert mask(freeze_layers=2) == mask(freeze=r"^h\.")


@pytest.mark.parametrize("tied", [True, False])
def test_rates_fall_from_layer_to_layer(small, tied):
    config = dataclasses.replace(small, n_layer=3, tie_word_embeddings=tied)
    ones = jax.tree.map(lambda x: jnp.ones(x.shape), model_of_shapes(config, stacked=True))
    rates = named(at_rates(ones, FinetuneConfig(layer_decay=0.5)))
    of_layers = [float(rates["h.mlp.c_fc.bias"][i, 0]) for i in range(3)]
    assert of_layers == [0.125, 0.25, 0.5]
    assert {float(x.max()) for name, x in rates.items() if name[0] == "w"} == {0.0625}
    assert {float(x.min()) for name, x in rates.items() if name[0] == "l"} == {1.0}
    assert ("lm_head.embedding" in rates) != tied
    assert at_rates(ones, ALL) is ones


def test_the_first_step_is_at_the_rates(small, batches, before):
    """Adam's first step without decay is the rate for every weight that has a gradient."""
    optimizer = dataclasses.replace(OPTIMIZER, weight_decay=0.0, warmup_steps=0, eps=1e-12)
    _, state = run(small, batches[:1], devices=ONE, optimizer=optimizer, finetune=FinetuneConfig(layer_decay=0.5))
    kernel = np.abs(np.asarray(state.model.h.mlp.c_fc.kernel) - before["h.mlp.c_fc.kernel"])
    np.testing.assert_allclose(np.median(kernel, (1, 2)), [0.25e-2, 0.5e-2], rtol=1e-3)


def test_a_checkpoint_has_moments_of_what_is_trained_alone(small, eight, tmp_path):
    mesh, state = make_mesh(MeshConfig(2, 2, 2)), eight[1]
    with CheckpointWriter(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(state, {}, "", None)
        checkpoints.wait()
        shapes = jax.eval_shape(functools.partial(init_state, small, make_optimizer(OPTIMIZER, 100), 0, LAYERED))
        restored = checkpoints.restore(3, abstract_state(shapes, tree_shardings(shapes, mesh)))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(restored), jax.tree.leaves(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "lora"}, "finetune.train is 'lora', which is found in no parameter's name; the names are h.a"),
        ({"freeze": "lm_head"}, "finetune.freeze is 'lm_head', which is found in no parameter's name; the names are"),
        ({"train": "^ln_f", "freeze": "ln"}, "nothing is left to train: finetune.train is '^ln_f', finetune.freeze 'l"),
        ({"train": r"^h\.", "freeze_layers": 2}, r"finetune.freeze_layers 2 of 2; the names are h.attn.c_attn.bias"),
        ({"freeze_layers": 3}, "finetune.freeze_layers is 3; the model has 2 layers: use at most as many"),
    ],
)  # fmt: skip
def test_what_fits_no_model_is_refused(small, options, message):
    with pytest.raises(InputError) as raised:
        trained_mask(model_of_shapes(small, stacked=True), FinetuneConfig(**options))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "h.("}, r"finetune.train is 'h.\('; it must be a regular expression \(missing \), unterminated"),
        ({"freeze": "*"}, r"finetune.freeze is '\*'; it must be a regular expression \(nothing to repeat at pos"),
        ({"freeze_layers": -1}, r"finetune.freeze_layers is -1; it must be 0 \(none\) or more"),
        ({"layer_decay": 0.0}, r"finetune.layer_decay is 0.0; it must be in \(0, 1\]; 1 is off"),
        ({"layer_decay": 1.1}, r"finetune.layer_decay is 1.1; it must be in \(0, 1\]; 1 is off"),
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Config.from_dict({"finetune": options})

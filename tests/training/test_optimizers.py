"""What holds for every optimizer: the decay mask, the learning rate, sharded state, checkpoints, bytes, learning."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from short_runs import OPTIMIZER, run

from gpt2_jax import InputError
from gpt2_jax.config import CheckpointConfig, Config, MeshConfig, OptimizerConfig
from gpt2_jax.model import parameter_name, parameter_names
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.sharding import make_mesh, tree_shardings
from gpt2_jax.training.changes import differences
from gpt2_jax.training.checkpoint import abstract_state
from gpt2_jax.training.checkpoint_writer import CheckpointWriter
from gpt2_jax.training.optimizer import MUON_RMS, decay_mask, make_optimizer
from gpt2_jax.training.step import init_state

NAMES = ("adamw", "adafactor", "lion", "muon")
KINDS = [*((name, "float32") for name in NAMES), *((name, "bfloat16") for name in ("adamw", "lion", "muon"))]
ON_MESHES = [*((name, "float32") for name in NAMES), ("adamw", "bfloat16")]  # the dtype is one option for all
ONE = jax.devices()[:1]


def options(name, dtype="float32", **changed):
    """At a rate that suits them all, Lion's being lower."""
    rate = 1e-3 if name == "lion" else 1e-2
    return dataclasses.replace(
        OPTIMIZER, name=name, moments_dtype=dtype, learning_rate=rate, final_learning_rate=rate / 10, **changed
    )


def state_of(config, optimizer):
    """The shapes of a fresh state."""
    return jax.eval_shape(functools.partial(init_state, config, make_optimizer(optimizer, 10), 0))


def named(tree):
    return {parameter_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


@pytest.fixture(scope="module")
def batches(tiny):
    """Thirty times the same two batches, so that there is something to learn soon."""
    rng = np.random.default_rng(0)
    two = [rng.integers(0, tiny.vocab_size, (8, 17)).astype(np.int32) for _ in range(2)]
    return [{"tokens": two[i % 2], "mask": np.ones((8, 16), bool)} for i in range(30)]


@pytest.fixture(scope="module")
def alone(tiny, batches):
    """(losses, last state) of thirty steps on one device, by optimizer and dtype of the moments."""
    return functools.cache(lambda name, dtype: run(tiny, batches, devices=ONE, optimizer=options(name, dtype)))


@pytest.mark.parametrize(("name", "dtype"), KINDS)
def test_thirty_steps_lower_the_loss(alone, name, dtype):
    curve, state = alone(name, dtype)
    assert curve[-1, 0] < curve[0, 0] - 0.5
    assert {x.dtype for x in jax.tree.leaves(state.model)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_in_bfloat16_change_losses_by_little(alone, name):
    curves = [alone(name, dtype)[0][:8] for dtype in ("float32", "bfloat16")]
    assert 0 < np.abs(curves[0] - curves[1])[:, 0].max() < 0.05


@pytest.mark.parametrize(("name", "dtype"), ON_MESHES)
def test_eight_devices_give_the_losses_of_one_and_checkpoints_of_every_bit(tiny, batches, alone, tmp_path, name, dtype):
    optimizer, mesh = options(name, dtype), make_mesh(MeshConfig(2, 2, 2))
    one = alone(name, dtype)[0][:6]
    eight, state = run(tiny, batches[:6], mesh=MeshConfig(2, 2, 2), optimizer=optimizer)
    np.testing.assert_allclose(eight, one, rtol=2e-4 if dtype == "bfloat16" else 1e-5)

    shapes = state_of(tiny, optimizer)
    with CheckpointWriter(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(state, {}, "", None)
    with CheckpointWriter(tmp_path, CheckpointConfig()) as checkpoints:
        restored = checkpoints.restore(6, abstract_state(shapes, tree_shardings(shapes, mesh)))
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert got.dtype == want.dtype and got.sharding == want.sharding
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("name", "moments"), [("adamw", 2), ("lion", 1), ("muon", 1), ("adafactor", 0)])
def test_moments_lie_as_their_parameters(tiny, name, moments):
    """Zero redundancy over fsdp and model, by construction; what is factored is small, and everywhere."""
    mesh = make_mesh(MeshConfig(2, 2, 2))
    init = functools.partial(init_state, tiny, make_optimizer(options(name), 10), 0)
    state = jax.jit(init, out_shardings=tree_shardings(jax.eval_shape(init), mesh))()
    for parameter, value in named(state.model).items():
        whole = [
            leaf for leaf_name, leaf in named(state.opt_state).items() if f".{leaf_name}".endswith(f".{parameter}")
        ]
        alike = [leaf for leaf in whole if leaf.shape == value.shape]
        assert all(leaf.sharding == value.sharding for leaf in alike)
        assert all(leaf.sharding.spec == P() for leaf in whole if leaf.shape != value.shape)
        is_matrix = re.search(r"(kernel|embedding)$", parameter)
        if name == "adafactor":
            assert len(whole) == 3 and len(alike) == (0 if is_matrix else 1)
        else:
            assert len(whole) == len(alike) == (2 if name == "muon" and "kernel" not in parameter else moments)


def test_no_layer_shares_a_factored_moment_with_another(tiny):
    """Even with more layers than anything else has rows."""
    state = named(state_of(dataclasses.replace(tiny, n_layer=200), options("adafactor")).opt_state)
    rows = {name: leaf.shape for name, leaf in state.items() if re.search(r"v_(row|col)\.h\.", name)}
    assert rows and all(shape[0] == 200 for shape in rows.values())
    assert {shape for name, shape in rows.items() if "c_fc.kernel" in name} == {(200, 32), (200, 128)}
    assert {shape for name, shape in rows.items() if "c_attn.kernel" in name} == {(200, 32, 3), (200, 3, 32)}


def test_adafactor_updates_each_layer_as_if_it_were_alone(tiny, tiny_model):
    optimizer = options("adafactor", weight_decay=0.0, clip_norm=0.0)
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape) + x, tiny_model)
    tx = make_optimizer(optimizer, 10)
    updates, _ = jax.jit(tx.update)(grads, tx.init(tiny_model), tiny_model)
    alone = optax.adafactor(OPTIMIZER.learning_rate / 3, min_dim_size_to_factor=32, multiply_by_parameter_scale=False)
    update = jax.jit(alone.update)
    for name in ("h.attn.c_attn.kernel", "h.mlp.c_proj.kernel", "h.mlp.c_fc.bias"):
        for layer in range(tiny.n_layer):
            grad = named(grads)[name][layer]
            want, _ = update(grad, alone.init(grad), grad)
            np.testing.assert_allclose(named(updates)[name][layer], want, rtol=1e-4, atol=1e-7)


def test_muon_makes_each_layers_matrices_orthogonal_and_queries_keys_and_values_apart(tiny_model):
    optimizer = options("muon", weight_decay=0.0, clip_norm=0.0)
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), tiny_model)
    tx = make_optimizer(optimizer, 10)
    updates = named(jax.jit(tx.update)(grads, tx.init(tiny_model), tiny_model)[0])
    alone = optax.contrib.muon(optimizer.learning_rate / 3, consistent_rms=MUON_RMS)  # a warm-up of two
    update_alone = jax.jit(alone.update)
    pairs = [(updates["h.mlp.c_fc.kernel"], grads.h.mlp.c_fc.kernel[...]),
             *((stack[:, :, part] for stack in (updates["h.attn.c_attn.kernel"], grads.h.attn.c_attn.kernel[...]))
               for part in range(3))]  # fmt: skip
    for stack, stacked_grads in pairs:
        for matrix, grad in zip(stack, stacked_grads):
            want, _ = update_alone(grad, alone.init(grad), grad)
            np.testing.assert_allclose(matrix, want, rtol=1e-3, atol=1e-6)
    wide = np.linalg.svd(updates["h.mlp.c_fc.kernel"][0], compute_uv=False)
    assert wide.max() < 2 * wide.min()
    adam = make_optimizer(dataclasses.replace(optimizer, name="adamw"), 10)
    for name, update in named(jax.jit(adam.update)(grads, adam.init(tiny_model), tiny_model)[0]).items():
        if "kernel" not in name:
            np.testing.assert_array_equal(updates[name], update)


@pytest.mark.parametrize("name", NAMES)
def test_decay_is_masked_and_follows_the_learning_rate(tiny_model, name):
    """Without a gradient only the decay moves parameters: each step by rate x decay of what they are."""
    optimizer = options(name, weight_decay=0.5)
    model = jax.tree.map(lambda x: x + 1.0, tiny_model)
    tx = make_optimizer(optimizer, 10)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, model), tx.init(model), model)
    decays = jax.tree.leaves(decay_mask(model, optimizer.decay_pattern))
    assert any(decays) and not all(decays)
    for x, update, decay in zip(jax.tree.leaves(model), jax.tree.leaves(updates), decays):
        wanted = -optimizer.learning_rate / 3 * 0.5 * x if decay else jnp.zeros_like(x)
        np.testing.assert_allclose(update, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_clipped_before(tiny_model, name):
    """Scaling gradients that are clipped anyway changes nothing."""
    tx = make_optimizer(options(name, clip_norm=1.0), 10)
    grads = jax.tree.map(lambda x: 10 * jax.random.normal(jax.random.key(1), x.shape), tiny_model)
    update = lambda grads: jax.tree.leaves(tx.update(grads, tx.init(tiny_model), tiny_model))
    for got, want in zip(update(jax.tree.map(lambda x: 4 * x, grads)), update(grads)):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "dtype", "least", "most"),
    [("adamw", "float32", 8, 8), ("adamw", "bfloat16", 4, 4), ("lion", "float32", 4, 4), ("lion", "bfloat16", 2, 2),
     ("muon", "float32", 5.27, 5.28), ("muon", "bfloat16", 2.63, 2.64), ("adafactor", "float32", 0, 0.02)],
)  # fmt: skip
def test_bytes_of_state_a_parameter_of_gpt2_small(name, dtype, least, most):
    state = state_of(GPT2Config(), OptimizerConfig(name=name, moments_dtype=dtype))
    parameters = sum(x.size for x in jax.tree.leaves(state.model))
    found = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.opt_state)) / parameters
    assert least <= found <= most + 1e-6  # counters


def test_adamw_is_what_it_was(tiny_model):
    """The same state, leaf for leaf, and the same bits: checkpoints from before there was a choice open."""
    config = OptimizerConfig(warmup_steps=0, schedule="constant")
    before = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(lambda _: 6e-4, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1,
                    mask=lambda model: decay_mask(model, config.decay_pattern)),
    )  # fmt: skip
    now = make_optimizer(config, 10)
    states = before.init(tiny_model), now.init(tiny_model)
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    assert jax.tree.leaves(parameter_names(states[0])) == jax.tree.leaves(parameter_names(states[1]))
    grads = jax.tree.map(jnp.cos, tiny_model)
    results = [jax.tree.leaves(tx.update(grads, state, tiny_model)) for tx, state in zip((before, now), states)]
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "adam"}, "optimizer.name is 'adam'; it must be 'adamw' or 'adafactor' or 'lion' or 'muon'"),
        ({"name": "adafactor", "moments_dtype": "bfloat16"},
         "optimizer.moments_dtype is 'bfloat16'; it must be left at 'float32': optimizer.name='adafactor' has no use"),
        ({"name": "adafactor", "beta1": 0.5}, "optimizer.beta1 is 0.5; it must be left at 0.9: optimizer.name='adaf"),
        ({"name": "lion", "eps": 1e-6}, "optimizer.eps is 1e-06; it must be left at 1e-08: optimizer.name='lion'"),
        ({"momentum": 0.9}, "optimizer.momentum is 0.9; it must be left at 0.95: optimizer.name='adamw' has no use"),
        ({"name": "muon", "momentum": 1.0}, r"optimizer.momentum is 1.0; it must be in \[0, 1\)"),
        ({"moments_dtype": "bfloat16", "beta2": 0.999},
         "optimizer.beta2 is 0.999; it must be at most 0.99 with optimizer.moments_dtype='bfloat16'"),
        ({"moments_dtype": "float16"}, "optimizer.moments_dtype is 'float16'; it must be 'float32' or 'bfloat16'"),
    ],
)  # fmt: skip
def test_what_an_optimizer_has_no_use_for_is_refused(changed, message):
    with pytest.raises(InputError, match=message):
        Config.from_dict({"optimizer": changed})


def test_a_resumed_run_keeps_its_optimizer():
    saved = Config.from_dict({"optimizer": {"name": "lion"}}).to_dict()
    wanted = Config.from_dict({"optimizer": {"moments_dtype": "bfloat16", "learning_rate": 1e-3}}).to_dict()
    assert differences(saved, wanted) == [
        "optimizer.moments_dtype ('float32' there, 'bfloat16' here)",
        "optimizer.name ('lion' there, 'adamw' here)",
    ]
    old = Config.from_dict({}).to_dict()
    for option in ("name", "moments_dtype", "momentum"):  # of a run from before they existed
        del old["optimizer"][option]
    assert differences(old, Config.from_dict({}).to_dict()) == []
    assert differences(old, saved) == ["optimizer.name ('adamw' there, 'lion' here)"]

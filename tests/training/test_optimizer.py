import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax.config import OptimizerConfig
from gpt2_jax.model import parameter_names
from gpt2_jax.training.optimizer import decay_mask, make_optimizer, make_schedule


# 101 steps, numbered from 0; the warm-up ends at 10, so 55 is the middle of what follows and 100 the last.
@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {10: 1.0, 55: 1.0, 100: 1.0}),
        ("linear", {10: 1.0, 28: 0.82, 55: 0.55, 100: 0.1}),
        ("cosine", {10: 1.0, 25: 0.1 + 0.9 * (1 + np.cos(np.pi / 6)) / 2, 55: 0.55, 100: 0.1}),
        ("wsd", {10: 1.0, 55: 1.0, 80: 1.0, 90: 0.55, 100: 0.1}),
    ],
)
def test_schedules(schedule, expected):
    config = OptimizerConfig(learning_rate=1.0, final_learning_rate=0.1, warmup_steps=10, schedule=schedule)
    rate = make_schedule(config, 101)
    np.testing.assert_allclose([rate(step) for step in expected], list(expected.values()), rtol=1e-5)
    np.testing.assert_allclose([rate(step) for step in range(11)], np.arange(1, 12) / 11, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_a_run_may_be_all_warmup(schedule):
    rate = make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=4, schedule=schedule), 4)
    np.testing.assert_allclose([rate(step) for step in range(4)], [0.2, 0.4, 0.6, 0.8], rtol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "wsd"])
def test_a_rate_never_falls_below_its_end(schedule):
    """Compiled, 1 - n / n may be a little below 0."""
    config = OptimizerConfig(learning_rate=5e-4, final_learning_rate=0.0, warmup_steps=20, schedule=schedule)
    rates = jax.jit(make_schedule(config, 400))(jnp.arange(500))
    assert rates.min() == 0.0 and (rates[:399] > 0).all()


def test_no_warmup_starts_at_the_peak():
    assert make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=0), 10)(0) == 1.0


def test_kernels_and_embeddings_decay_biases_and_norms_do_not(tiny_model):
    mask = decay_mask(tiny_model, OptimizerConfig.decay_pattern)
    decays = dict(zip(jax.tree.leaves(parameter_names(tiny_model)), jax.tree.leaves(mask)))
    assert {name for name, decay in decays.items() if decay} == {
        "wte.embedding", "wpe.embedding", "h.attn.c_attn.kernel", "h.attn.c_proj.kernel", "h.mlp.c_fc.kernel",
        "h.mlp.c_proj.kernel",
    }  # fmt: skip

    # Without a gradient only the decay moves parameters.
    config = OptimizerConfig(learning_rate=0.1, final_learning_rate=0.0, warmup_steps=0, weight_decay=0.5)
    model = jax.tree.map(lambda x: x + 1.0, tiny_model)
    tx = make_optimizer(config, 10)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, model), tx.init(model), model)
    for name, update in zip(decays, jax.tree.leaves(updates)):
        assert decays[name] == bool(jnp.abs(update).max() > 0), name


def test_clipping_by_the_global_norm():
    params, grads = {"kernel": jnp.zeros(4)}, {"kernel": jnp.array([30.0, 40.0, 0.0, 0.0])}
    clipped = OptimizerConfig(clip_norm=1.0, learning_rate=1.0, warmup_steps=0, weight_decay=0.0, eps=1.0)
    free = OptimizerConfig(clip_norm=0.0, learning_rate=1.0, warmup_steps=0, weight_decay=0.0, eps=1.0)

    def first_update(config):
        tx = make_optimizer(config, 10)
        return tx.update(grads, tx.init(params), params)[0]["kernel"]

    # Adam's first update is -g / (|g| + eps): eps shows the size of g.
    np.testing.assert_allclose(first_update(clipped)[:2], [-0.6 / 1.6, -0.8 / 1.8], rtol=1e-4)
    np.testing.assert_allclose(first_update(free)[:2], [-30 / 31, -40 / 41], rtol=1e-4)

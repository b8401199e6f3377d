import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt2_jax.config import OptimizerConfig
from gpt2_jax.model import parameter_names
from gpt2_jax.training.optimizer import decay_mask, make_optimizer, make_schedule


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {10: 1.0, 55: 1.0, 100: 1.0}),
        ("linear", {10: 1.0, 55: 0.55, 100: 0.1}),
        ("cosine", {10: 1.0, 55: 0.55, 100: 0.1}),
        ("wsd", {10: 1.0, 55: 1.0, 80: 1.0, 90: 0.55, 100: 0.1}),
    ],
)
def test_schedules(schedule, expected):
    config = OptimizerConfig(learning_rate=1.0, final_learning_rate=0.1, warmup_steps=10, schedule=schedule)
    rate = make_schedule(config, 100)
    np.testing.assert_allclose([rate(step) for step in expected], list(expected.values()), rtol=1e-5)
    warmup = np.array([rate(step) for step in range(11)])
    assert warmup[0] > 0
    np.testing.assert_allclose(np.diff(warmup), np.diff(warmup)[0], rtol=1e-4)


def test_no_warmup_starts_at_the_peak():
    assert make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=0), 10)(0) == 1.0


def test_kernels_and_embeddings_decay_biases_and_norms_do_not(tiny_model):
    mask = decay_mask(tiny_model, OptimizerConfig.decay_pattern)
    decays = dict(zip(jax.tree.leaves(parameter_names(tiny_model)), jax.tree.leaves(mask)))
    assert decays["h.attn.c_attn.kernel"] and decays["wte.embedding"] and decays["wpe.embedding"]
    assert not any(decay for name, decay in decays.items() if name.endswith(("bias", "scale")))

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
    assert isinstance(make_optimizer(free, 10), optax.GradientTransformation)

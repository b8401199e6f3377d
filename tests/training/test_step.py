import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_runs import OPTIMIZER, run

from gpt2_jax.config import MeshConfig
from gpt2_jax.model import GPT2
from gpt2_jax.training.optimizer import make_optimizer, make_schedule
from gpt2_jax.training.step import eval_step, init_state, make_train_step, sum_of_losses

ONE = jax.devices()[:1]


def make_batches(config, count, seed=0):
    """Batches of 8 sequences of 16, with a tenth of the positions masked, unevenly over the rows."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        mask = rng.random((8, 16)) < np.linspace(0.8, 1.0, 8)[:, None]
        yield {"tokens": rng.integers(0, config.vocab_size, (8, 17)).astype(np.int32), "mask": mask}


@pytest.fixture(scope="module")
def batches(tiny):
    return list(make_batches(tiny, 4))


@pytest.fixture(scope="module")
def reference(tiny, batches):
    return run(tiny, batches, devices=ONE)[0]


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(1, -1, 1), MeshConfig(2, 2, 2)], ids=str)
def test_losses_are_the_same_on_1_and_8_devices(tiny, batches, reference, mesh):
    np.testing.assert_allclose(run(tiny, batches, mesh=mesh)[0], reference, rtol=1e-5)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_changes_nothing(tiny, batches, reference, parts):
    np.testing.assert_allclose(run(tiny, batches, devices=ONE, accumulation_steps=parts)[0], reference, rtol=1e-5)


def test_accumulation_on_a_mesh(tiny, batches, reference):
    curve, _ = run(tiny, batches, mesh=MeshConfig(2, 2, 2), accumulation_steps=2, loss_chunks=4)
    np.testing.assert_allclose(curve, reference, rtol=1e-5)


@pytest.mark.parametrize("chunks", [2, 4])
def test_loss_chunks_change_neither_loss_nor_gradient(tiny, tiny_model, batches, chunks):
    def value_and_grad(chunks):
        loss = lambda model: sum_of_losses(model, batches[0], chunks=chunks)
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss))(tiny_model))

    for got, want in zip(value_and_grad(chunks), value_and_grad(1)):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def largest_float32(jaxpr):
    """The most elements of any float32 value in a jaxpr and those inside it."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [v.aval.size for v in equation.outvars if getattr(v.aval, "dtype", None) == jnp.float32]
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "jaxpr") or hasattr(p, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                sizes.append(largest_float32(inner))
    return max(sizes)


def test_with_chunks_the_whole_logits_never_exist(tiny, tiny_model, batches):
    config = dataclasses.replace(tiny, vocab_size=4000)
    model = jax.eval_shape(functools.partial(GPT2, config), jax.random.key(0))
    parameters = config.padded_vocab_size * config.n_embd
    logits = 8 * 16 * config.padded_vocab_size
    assert parameters < logits / 2

    def largest(chunks):
        grad = jax.grad(lambda model: sum_of_losses(model, batches[0], chunks=chunks))
        return largest_float32(jax.make_jaxpr(grad)(model).jaxpr)

    assert largest(1) >= logits
    assert largest(4) < logits / 2

    def largest_in_evaluation(chunks):
        evaluate = functools.partial(eval_step, loss_chunks=chunks)
        return largest_float32(jax.make_jaxpr(evaluate)(model, batches[0]).jaxpr)

    assert largest_in_evaluation(1) >= logits
    assert largest_in_evaluation(4) < logits / 2


def test_against_a_loop(tiny_model, batches):
    batch = batches[0]
    logits = np.asarray(jax.jit(lambda m, t: m(t))(tiny_model, batch["tokens"][:, :-1]), np.float64)
    total = 0.0
    for b, t in zip(*np.nonzero(batch["mask"])):
        total += np.log(np.exp(logits[b, t]).sum()) - logits[b, t, batch["tokens"][b, t + 1]]
    sums = jax.jit(eval_step)(tiny_model, batch)
    np.testing.assert_allclose(sums["loss"], total, rtol=1e-5)
    assert sums["count"] == batch["mask"].sum()


def test_masked_positions_do_not_count(tiny_model, batches):
    batch = batches[0]
    other = dict(batch, tokens=batch["tokens"].copy())
    other["tokens"][:, -1] = (other["tokens"][:, -1] + 1) % 101
    blind = batch["mask"] & (np.arange(16) < 15)
    loss = jax.jit(sum_of_losses)
    assert loss(tiny_model, batch | {"mask": blind}) == loss(tiny_model, other | {"mask": blind})
    nothing = jax.jit(eval_step)(tiny_model, batch | {"mask": np.zeros((8, 16), bool)})
    assert nothing["loss"] == 0 and nothing["count"] == 0


def test_a_fresh_model_knows_nothing_and_learns(tiny, batches):
    config = dataclasses.replace(tiny, initializer_range=0.02)
    curve, state = run(config, batches[:1] * 40, devices=ONE)
    assert curve[0, 0] == pytest.approx(np.log(101), rel=0.01)
    assert curve[-1, 0] < 0.5 * curve[0, 0]
    assert int(state.step) == 40


def test_dropout_differs_by_step_and_repeats(tiny, batches):
    config = dataclasses.replace(tiny, resid_pdrop=0.3)
    same = batches[:1] * 3
    curve, _ = run(config, same, devices=ONE)
    np.testing.assert_array_equal(curve, run(config, same, devices=ONE)[0])
    plain, _ = run(tiny, same, devices=ONE)
    assert (np.abs(curve - plain)[:, 0] > 1e-3).all()


@pytest.mark.parametrize("parts", [1, 2])
def test_the_dropout_key_follows_the_step_alone(tiny, batches, parts):
    """The same parameters and the same batch: only the number of the step differs."""
    config = dataclasses.replace(tiny, n_layer=1, resid_pdrop=0.3)
    tx = make_optimizer(OPTIMIZER, 100)
    state = jax.jit(functools.partial(init_state, config, tx, 0))()
    step = jax.jit(make_train_step(tx, make_schedule(OPTIMIZER, 100), accumulation_steps=parts))
    loss = lambda number: float(step(state._replace(step=jnp.int32(number)), batches[0])[1]["loss"])
    losses = [loss(number) for number in range(4)]
    assert len(set(losses)) == 4 and losses == [loss(number) for number in range(4)]


def test_every_part_of_a_batch_drops_its_own(tiny, batches):
    """Parts take every other row, so that both are the same rows here; the keys are not."""
    config = dataclasses.replace(tiny, n_layer=1, resid_pdrop=0.3)
    half = {k: a[:4] for k, a in batches[0].items()}
    tx = make_optimizer(OPTIMIZER, 100)
    state = jax.jit(functools.partial(init_state, config, tx, 0))()
    step = jax.jit(make_train_step(tx, make_schedule(OPTIMIZER, 100), accumulation_steps=2))
    loss = step(state, {k: np.repeat(a, 2, axis=0) for k, a in half.items()})[1]["loss"]
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
    first, second = (jax.jit(sum_of_losses)(state.model, half, key=k) for k in jax.random.split(key))
    np.testing.assert_allclose(loss, (first + second) / (2 * half["mask"].sum()), rtol=1e-5)
    assert abs(float(first - second)) > 1e-2

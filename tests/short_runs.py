"""A few training steps, on a mesh or not; and a look at the batches of a whole run."""

import functools

import jax
import numpy as np

from gpt2_jax.config import MeshConfig, OptimizerConfig
from gpt2_jax.sharding import global_batch, make_mesh, on_mesh, tree_shardings
from gpt2_jax.training import loop
from gpt2_jax.training import run as parts
from gpt2_jax.training.optimizer import make_optimizer, make_schedule
from gpt2_jax.training.selection import ALL
from gpt2_jax.training.step import init_state, make_train_step

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=2)


def run(config, batches, *, mesh=None, devices=None, optimizer=OPTIMIZER, finetune=ALL, **options):
    """(losses and gradient norms [steps, 2], last state)."""
    mesh = make_mesh(mesh or MeshConfig(), devices)
    tx = make_optimizer(optimizer, 100)
    init = functools.partial(init_state, config, tx, 0, finetune)
    shardings = tree_shardings(jax.eval_shape(init), mesh)
    state = jax.jit(init, out_shardings=shardings)()
    step = make_train_step(tx, make_schedule(optimizer, 100), finetune=finetune, **options)
    step = on_mesh(mesh, jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)))
    curve = []
    for batch in batches:
        state, metrics = step(state, global_batch(batch, mesh))
        curve.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return np.array(curve), state


def watch_batches(monkeypatch, watch) -> None:
    """Has `watch(batch, mesh)` called for `global_batch` wherever a run makes one."""
    for module in (loop, parts):
        monkeypatch.setattr(module, "global_batch", watch)


def use_devices(monkeypatch, devices) -> None:
    """Makes the mesh of a run of these devices alone."""
    monkeypatch.setattr(parts, "make_mesh", functools.partial(make_mesh, devices=devices))

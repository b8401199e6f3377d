"""What the tests of checkpoints share."""

import functools

import jax
import optax
import pytest
from saved_states import save

from gpt2_jax.config import CheckpointConfig, MeshConfig
from gpt2_jax.sharding import make_mesh, tree_shardings
from gpt2_jax.training.checkpoint_writer import CheckpointWriter
from gpt2_jax.training.step import init_state


@pytest.fixture(scope="module")
def init(tiny):
    return functools.partial(init_state, tiny, optax.adam(1e-3), 0)


@pytest.fixture(scope="module")
def shapes(init):
    return jax.eval_shape(init)


@pytest.fixture(scope="module")
def state(init, shapes):
    """A state on a 2 x 2 x 2 mesh."""
    return jax.jit(init, out_shardings=tree_shardings(shapes, make_mesh(MeshConfig(2, 2, 2))))()


@pytest.fixture(scope="module")
def two(tmp_path_factory, state):
    """The workdir of a run with checkpoints of steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    with CheckpointWriter(folder, CheckpointConfig()) as checkpoints:
        save(checkpoints, state, [(1, 1.0), (2, 2.0)])
    return folder

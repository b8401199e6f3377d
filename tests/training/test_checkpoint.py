import functools
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from gpt2_jax import InputError
from gpt2_jax.config import CheckpointConfig, Config, MeshConfig
from gpt2_jax.sharding import make_mesh, tree_shardings
from gpt2_jax.training.checkpoint import Checkpoints, abstract_state, differences
from gpt2_jax.training.step import init_state

CONFIG = {"model": {"n_layer": 3}}


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


def at(state, step):
    return state._replace(step=jax.numpy.full_like(state.step, step))


def save(checkpoints, state, steps_and_losses):
    for step, loss in steps_and_losses:
        checkpoints.save(at(state, step), CONFIG, '{"a": 1}', loss)
    checkpoints.wait()


def test_a_state_comes_back_bit_for_bit_on_another_mesh(tmp_path, state, shapes):
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        save(checkpoints, state, [(7, 1.0)])
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        shardings = tree_shardings(shapes, make_mesh(MeshConfig(fsdp=8, data=1)))
        restored = checkpoints.restore(checkpoints.find(), abstract_state(shapes, shardings))
        assert checkpoints.read_json(7) == (CONFIG, '{"a": 1}')
    assert int(restored.step) == 7
    for got, want, sharding in zip(*map(jax.tree.leaves, (restored, at(state, 7), shardings))):
        np.testing.assert_array_equal(got, want)
        assert got.dtype == want.dtype and got.sharding == sharding


def test_the_newest_and_the_best_are_kept(tmp_path, state):
    losses = [(1, 5.0), (2, 1.0), (3, 3.0), (4, 4.0), (5, None)]
    with Checkpoints(tmp_path, CheckpointConfig(keep=2, keep_best=1)) as checkpoints:
        save(checkpoints, state, losses)
        assert checkpoints.steps == [2, 4, 5]
        assert checkpoints.find("best") == 2 and checkpoints.find() == 5 and checkpoints.find(4) == 4
        save(checkpoints, state, [(5, None)])  # once more: nothing to do
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [2, 4, 5] and checkpoints.find("best") == 2


def test_keeping_only_the_newest(tmp_path, state):
    with Checkpoints(tmp_path, CheckpointConfig(keep=1, keep_best=0)) as checkpoints:
        save(checkpoints, state, [(1, 1.0), (2, 2.0), (3, 3.0)])
        assert checkpoints.steps == [3]


def test_the_parameters_come_back_alone(tmp_path, state, shapes):
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        save(checkpoints, state, [(3, 1.0)])
    shutil.rmtree(tmp_path / "checkpoints" / "3" / "training")  # not needed, so not read
    with Checkpoints(tmp_path) as checkpoints:
        shardings = tree_shardings(shapes.model, make_mesh(MeshConfig(), jax.devices()[:1]))
        model = checkpoints.restore_model(3, abstract_state(shapes.model, shardings))
    for got, want, sharding in zip(*map(jax.tree.leaves, (model, state.model, shardings))):
        np.testing.assert_array_equal(got, want)
        assert got.sharding == sharding


def test_nothing_found(tmp_path, state):
    with pytest.raises(InputError, match="holds no checkpoints; give the --workdir of a training run"):
        Checkpoints(tmp_path)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        with pytest.raises(InputError, match="has no checkpoint yet; it is empty"):
            checkpoints.find()
        save(checkpoints, state, [(2, None), (3, None)])
        with pytest.raises(InputError, match="has no checkpoint best; it has 3"):  # none has a validation loss
            checkpoints.find("best")
        with pytest.raises(InputError, match="has no checkpoint 4; it has 3"):
            checkpoints.find(4)


def test_differences_name_what_a_resumed_run_may_not_change():
    saved = Config.from_dict({}).to_dict()
    free = {
        "optimizer": {"learning_rate": 1e-4},
        "training": {"steps": 5000, "log_every": 1},
        "model": {"dtype": "bfloat16"},
    }
    assert differences(saved, Config.from_dict(free).to_dict()) == []
    fixed = {"model": {"n_layer": 6}, "training": {"seed": 1, "batch_size": 4}, "data": {"vocab_size": 300}}
    assert differences(saved, Config.from_dict(fixed).to_dict()) == [
        "data.vocab_size (4096 there, 300 here)",
        "model.n_layer (12 there, 6 here)",
        "training.batch_size (8 there, 4 here)",
        "training.seed (0 there, 1 here)",
    ]


# A limit on the size of files stands for a full disk: Python ignores the signal, and writes fail. As for a user, what
# failed is opened again by another process: in the same one, threads of the failed save may still be writing.
FULL_DISK = """
import resource, shutil, sys, time
from pathlib import Path
import jax, numpy, optax
from gpt2_jax import GPT2Config, InputError
from gpt2_jax.config import CheckpointConfig
from gpt2_jax.training.checkpoint import Checkpoints
from gpt2_jax.training.step import init_state

config = GPT2Config(vocab_size=500, n_positions=8, n_embd=256, n_layer=1, n_head=1)
state = jax.jit(lambda: init_state(config, optax.identity(), 0))()
at = lambda step: state._replace(step=jax.numpy.full_like(state.step, step))
folder = Path(sys.argv[2])

def disk(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def fail(_):
    raise InputError("another failure")

save = lambda step, tokenizer="": lambda checkpoints: checkpoints.save(at(step), {}, tokenizer, 1.0)
wait = lambda checkpoints: checkpoints.wait()
attempts = {
    "wait": (50_000, save(2), wait),
    "next save": (50_000, save(2), lambda _: time.sleep(1), save(3)),
    "end": (50_000, save(2)),
    "end after another failure": (50_000, save(2), fail),
    "json": (10, save(2, "a long tokenizer"), wait),
}
if sys.argv[1] == "fail":
    with Checkpoints(folder / "good", CheckpointConfig()) as checkpoints:
        save(1)(checkpoints)
        wait(checkpoints)
    for name, (size, *actions) in attempts.items():
        shutil.copytree(folder / "good", folder / name)
        try:
            with Checkpoints(folder / name, CheckpointConfig()) as checkpoints:
                disk(size)
                for action in actions:
                    action(checkpoints)
        except InputError as error:
            print(error)
        disk(resource.RLIM_INFINITY)
else:
    for name in attempts:
        with Checkpoints(folder / name, CheckpointConfig()) as checkpoints:
            before = checkpoints.steps
            restored = checkpoints.restore(1, jax.eval_shape(lambda: state))
            jax.tree.map(numpy.testing.assert_array_equal, jax.tree.leaves(restored), jax.tree.leaves(at(1)))
            save(2)(checkpoints)
            wait(checkpoints)
            print(before, checkpoints.steps)
"""


def test_a_full_disk_is_named_and_costs_nothing(tmp_path):
    def process(what):
        command = [sys.executable, "-c", FULL_DISK, what, str(tmp_path)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout.strip().splitlines()

    messages = process("fail")
    assert len(messages) == 5
    for message in messages:
        assert message.startswith("could not save ")
        assert "File too large; steps 1 are untouched: make room and run the same command again" in message
    assert "the checkpoint of step 3 (or the one before it)" in messages[1]
    assert process("go on") == ["[1] [2]"] * 5

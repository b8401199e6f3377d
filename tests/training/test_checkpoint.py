import shutil

import jax
import numpy as np
import pytest
from saved_states import CONFIG, at, flip_a_bit, save

from gpt2_jax import InputError
from gpt2_jax.config import CheckpointConfig, MeshConfig
from gpt2_jax.sharding import make_mesh, tree_shardings
from gpt2_jax.training import seal
from gpt2_jax.training.checkpoint import Checkpoints, abstract_state
from gpt2_jax.training.checkpoint_writer import CheckpointWriter


def test_a_state_comes_back_bit_for_bit_on_another_mesh(tmp_path, state, shapes):
    with CheckpointWriter(tmp_path, CheckpointConfig()) as checkpoints:
        save(checkpoints, state, [(7, 1.0)])
    with CheckpointWriter(tmp_path, CheckpointConfig()) as checkpoints:
        shardings = tree_shardings(shapes, make_mesh(MeshConfig(fsdp=8, data=1)))
        restored = checkpoints.restore(checkpoints.find(), abstract_state(shapes, shardings))
        assert checkpoints.read_json(7) == (CONFIG, '{"a": 1}')
    assert int(restored.step) == 7
    for got, want, sharding in zip(*map(jax.tree.leaves, (restored, at(state, 7), shardings))):
        np.testing.assert_array_equal(got, want)
        assert got.dtype == want.dtype and got.sharding == sharding


def test_the_parameters_come_back_alone(tmp_path, state, shapes):
    with CheckpointWriter(tmp_path, CheckpointConfig()) as checkpoints:
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
    with CheckpointWriter(tmp_path, CheckpointConfig()) as checkpoints:
        with pytest.raises(InputError, match="has no checkpoint yet; it is empty"):
            checkpoints.find()
        save(checkpoints, state, [(2, None), (3, None)])
        with pytest.raises(InputError, match="has no checkpoint best; it has 2, 3"):  # none has a validation loss
            checkpoints.find("best")
        with pytest.raises(InputError, match="has no checkpoint 4; it has 2, 3"):
            checkpoints.find(4)


def test_a_damaged_checkpoint_is_never_read_by_its_number(tmp_path, two):
    shutil.copytree(two, tmp_path / "run")
    flip_a_bit(max((tmp_path / "run" / "checkpoints" / "1" / "model").rglob("*"), key=lambda path: path.stat().st_size))
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.find() == 2
        for step in (1, "best"):
            with pytest.raises(
                InputError, match=r"step 1 in .* is damaged \(model/.* its sha256 differs\); it also has 2"
            ):
                checkpoints.find(step)


def test_a_checkpoint_of_a_newer_format_is_named(tmp_path, two):
    shutil.copytree(two, tmp_path / "run")
    metadata = tmp_path / "run" / "checkpoints" / "2" / seal.METADATA
    metadata.write_text(metadata.read_text().replace('"format": 2', '"format": 3').replace('"format":2', '"format":3'))
    newer = pytest.raises(InputError, match="its format is 3, and this version of gpt2_jax reads up to 2")
    with Checkpoints(tmp_path / "run") as checkpoints, newer:
        checkpoints.find(2)

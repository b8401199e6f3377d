import jax
import pytest
from test_loop import options

from gpt2_jax import InputError
from gpt2_jax.config import Config
from gpt2_jax.sharding import make_mesh
from gpt2_jax.training import loop, out_of_memory
from gpt2_jax.training.program import Program


def test_a_step_that_is_too_large_says_what_to_try(tmp_path):
    """For real: logits of 65,536 x 16 x 2 million float32 numbers, 8 terabytes."""
    large = {"vocab_size": 2_000_000, "n_embd": 2, "n_head": 1}
    config = options(tmp_path, model=large, training={"batch_size": 65_536}, evaluation={"batch_size": 8, "windows": 8})
    with pytest.raises(InputError) as error:
        loop.train(config, tmp_path / "run")
    message = str(error.value)
    assert message.startswith("there is not enough memory for a step on cpu:0 (RESOURCE_EXHAUSTED: Out of memory")
    assert "Beside activations a device holds: float32 logits 976.56" in message
    assert (
        "run again with one or more of --config.training.loss_chunks=8, --config.mesh.data=1 --config.mesh.fsdp=-1, "
        "--config.model.remat=full, --config.training.accumulation_steps=2. scripts/compile_for_topology.py" in message
    )


@pytest.mark.parametrize("devices", [1, 8])
def test_what_a_device_holds_and_what_is_left_to_try(devices):
    groups = {
        "model": {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 16, "vocab_size": 100, "remat": "full"},
        "training": {"batch_size": 8, "loss_chunks": 8},
        "mesh": {"data": 1, "fsdp": -1},
    }
    config = Config.from_dict(groups)
    program = Program.of(config, make_mesh(config.mesh, jax.devices()[:devices]))
    held = out_of_memory.known_arrays(config, program)
    assert held["optimizer state"] == pytest.approx(2 * held["parameters"], rel=0.01)
    assert held["float32 logits"] == 4 * (8 // devices) * (16 // 8) * 128
    norm = Config.from_dict(groups | {"finetune": {"train": "^ln_f"}})
    held = out_of_memory.known_arrays(norm, Program.of(norm, program.mesh))
    assert held["their gradients"] == 4 * 2 * 16 and held["parameters"] > 20 * held["their gradients"]
    advice = out_of_memory.advice(config, program)
    last = "a smaller model is what is left"
    assert advice == ("run again with one or more of --config.training.accumulation_steps=2" if devices == 1 else last)


def test_other_errors_stay_what_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), out_of_memory.explained(None, None):
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")

"""The project's own steps through the TPU's compiler, as scripts/compile_for_topology.py runs it."""

import json
import os
import subprocess
import sys

import pytest

from gpt2_jax import InputError
from gpt2_jax.topology import compiling

TINY = {
    "model.n_layer": 2, "model.n_head": 2, "model.n_embd": 128, "model.n_positions": 256, "model.vocab_size": 1000,
    "model.dtype": "bfloat16", "model.resid_pdrop": 0.0, "model.embd_pdrop": 0.0, "model.attn_pdrop": 0.0,
    "training.batch_size": 16, "mesh.data": 1, "mesh.fsdp": -1,
}  # fmt: skip
MATRICES, POSITIONS = 12 * 128 * 128 * 4, 256 * 128 * 4  # bytes of a layer's matrices and of wpe, in float32


@pytest.fixture
def compile_for(pytestconfig):
    """Runs the script for the quickstart's config with some changes."""
    root = pytestconfig.rootpath

    def run(topology, *arguments, python=sys.executable, **changes):
        options = [f"--config.{name}={value}" for name, value in {**TINY, **changes}.items()]
        command = [sys.executable, root / "scripts/compile_for_topology.py", f"--topology={topology}"]
        command += [f"--python={python}", *arguments, f"--config={root / 'configs/quickstart.py'}", *options]
        environment = os.environ | {"PYTHONPATH": str(root), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
        return subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)

    return run


def test_parameters_over_eight_chips_are_gathered_and_their_gradients_scattered(compile_for, aot_python):
    done = compile_for("v5e-8", "--json", python=aot_python)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["fits"] and summary["mesh"]["fsdp"] == 8 and summary["measured"] is False
    assert summary["needs"] == summary["memory"]["peak"] < summary["has"]
    found = summary["collectives"]
    assert found["reduce-scatter"]["bytes"] > 0.4 * 2 * MATRICES and found["all-gather"]["bytes"] > 0.4 * 2 * MATRICES
    # The position table's is summed whole, as are those of norms and biases; no matrix's is.
    assert found["all-reduce"]["bytes"] < POSITIONS + 0.05 * MATRICES
    assert 0 < summary["mfu_ceiling"] <= 1 and summary["limit"] in summary["bounds"]
    assert summary["unknown_loops"] == summary["whole_copies"] == 0


def test_gradients_over_a_square_of_chips_are_scattered_in_two_turns(compile_for, aot_python):
    done = compile_for("v5e-16", "--json", python=aot_python, **{"model.n_embd": 256, "training.loss_chunks": 4})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["collectives"]
    assert found["reduce-scatter"]["bytes"] > 0.4 * 2 * 4 * MATRICES
    assert found["all-reduce"]["bytes"] < 2 * POSITIONS + 0.05 * 4 * MATRICES


def test_too_large_a_batch_does_not_fit_and_says_by_how_much(compile_for, aot_python):
    changes = {"training.batch_size": 8192, "model.attention": "xla"}
    done = compile_for("v5e-1", python=aot_python, **changes)
    assert done.returncode == 2, done.stderr
    assert "DOES NOT FIT: needs " in done.stdout and " GiB of the 15.75 GiB that a device has; " in done.stdout


def test_a_token_is_decoded_on_one_chip(compile_for, aot_python):
    done = compile_for("v6e-1", "--step=decode", "--batch_size=2", python=aot_python)
    assert done.returncode == 0, done.stderr
    assert "decode step of " in done.stdout and "2 rows, a token of each, on one device" in done.stdout
    assert "collectives a step: none" in done.stdout and "bounds, not measurements" in done.stdout


def test_a_mesh_that_does_not_divide_is_one_line(compile_for, aot_python):
    done = compile_for("v5e-8", python=aot_python, **{"mesh.fsdp": 3})
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: mesh.data=1, mesh.fsdp=3") and "there are 8" in line


@pytest.mark.parametrize(
    ("topology", "arguments", "message"),
    [
        ("v9-8", [], "there is no topology 'v9-8'; the number counts chips, and there are v4-4/8"),
        ("v5e-8", ["--batch_size=4"], "--batch_size is of --step=decode; of training set --config.training.batch_size"),
    ],
)
def test_what_cannot_be_is_one_line(compile_for, topology, arguments, message):
    done = compile_for(topology, *arguments)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("message", "needs", "has"),
    [
        ("the total memory required for HLO temporaries (24.57G) exceeds available HBM (15.75G).", 24.57, 15.75),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.53G of 15.75G hbm.", 20.53, 15.75),
    ],
)
def test_refusals(message, needs, has):
    found = compiling.refusal(message)
    assert found == {"needs": pytest.approx(needs * 2**30), "has": pytest.approx(has * 2**30)}


def test_other_refusals():
    assert compiling.refusal("INVALID_ARGUMENT: something else") is None
    with pytest.raises(InputError, match="too little memory and does not say of what: RESOURCE_EXHAUSTED: vmem"):
        compiling.refusal("RESOURCE_EXHAUSTED: vmem")

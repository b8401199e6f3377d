"""However a run is cut over eight devices, it has the losses and gradients of one device."""

import dataclasses
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from short_runs import run
from test_documents_apart import END, apart

from gpt2_jax.config import MeshConfig
from gpt2_jax.model_config import GPT2Config

CONFIG = GPT2Config(
    vocab_size=END + 1, n_positions=32, n_embd=32, n_layer=2, n_head=8, initializer_range=0.2,
    resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1,
)  # fmt: skip
# Each axis alone, each left out of 2 x 2 x 2, and four of the twelve ways to cut by 4 and 2.
MESHES = [
    MeshConfig(8, 1, 1, 1), MeshConfig(1, 8, 1, 1), MeshConfig(1, 1, 8, 1), MeshConfig(1, 1, 1, 8),
    MeshConfig(1, 2, 2, 2), MeshConfig(2, 1, 2, 2), MeshConfig(2, 2, 1, 2), MeshConfig(2, 2, 2, 1),
    MeshConfig(4, 2, 1, 1), MeshConfig(1, 4, 2, 1), MeshConfig(1, 1, 4, 2), MeshConfig(2, 1, 1, 4),
]  # fmt: skip


def batches(count: int, T: int = 16) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, END, (count, 8, T + 1)).astype(np.int32)
    tokens[rng.random(tokens.shape) < 0.15] = END
    return [{"tokens": rows, "mask": rng.random((8, T)) < 0.7, **apart(rows)} for rows in tokens]


def curve(config: GPT2Config, mesh: MeshConfig, devices: int, **options) -> np.ndarray:
    """Losses and gradient norms [steps, 2]."""
    return run(config, batches(2), mesh=mesh, devices=jax.devices()[:devices], **options)[0]


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return curve(CONFIG, MeshConfig(), 1, loss_chunks=2)


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: "x".join(map(str, dataclasses.astuple(mesh)[:4])))
def test_the_mesh_changes_nothing(reference, mesh):
    """With documents apart, dropout, masks and the loss in chunks."""
    np.testing.assert_allclose(curve(CONFIG, mesh, 8, loss_chunks=2), reference, rtol=2e-6)


WARNED = "Involuntary full rematerialization"  # XLA's words for a result that it gathers on every device
COMPILES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
sys.path.insert(0, "tests")
from test_meshes import CONFIG, batches
from short_runs import run
from gpt2_jax.config import MeshConfig
from gpt2_jax.sharding import make_mesh
jax.config.update("jax_platforms", "cpu")
for mesh in (MeshConfig(2, 2, 2), MeshConfig(1, 2, 2, 2), MeshConfig(1, 8)):
    run(CONFIG, batches(1), mesh=mesh, devices=jax.devices(), loss_chunks=2)
print("and now a plain look-up", file=sys.stderr, flush=True)
on = lambda *spec: NamedSharding(make_mesh(MeshConfig(2, 2, 2)), P(*spec))
take = lambda table, tokens: jax.lax.with_sharding_constraint(table[tokens], on(("data", "fsdp")))
shapes = jax.ShapeDtypeStruct((64, 32), jnp.float32), jax.ShapeDtypeStruct((8, 16), jnp.int32)
jax.jit(take, in_shardings=(on(None, "fsdp"), on(("data", "fsdp")))).lower(*shapes).compile()
"""


def test_no_result_is_gathered_on_every_device(pytestconfig):
    """A plain look-up shows that XLA says so; the step, with positions and documents, does not make it."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0", "XLA_FLAGS": flags}
    command = [sys.executable, "-c", COMPILES]
    done = subprocess.run(command, cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    step, plain = done.stderr.split("and now a plain look-up")
    assert WARNED not in step and WARNED in plain

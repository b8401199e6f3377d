"""Every way to cut a run over eight devices gives the losses and gradients of one device."""

import dataclasses
import itertools
import math

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
MESHES = [MeshConfig(*sizes) for sizes in itertools.product((1, 2, 4, 8), repeat=4) if math.prod(sizes) == 8]


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

"""The engines of attention against plain attention: splash interpreted on CPU, cuDNN's call with XLA in its place."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt2_jax import InputError, engines
from gpt2_jax.config import MeshConfig
from gpt2_jax.engines import choose, make_attention
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.sharding import global_batch, make_mesh, on_mesh, tree_shardings
from gpt2_jax.training.step import sum_of_losses

B, H, T, K = 2, 4, 256, 64
CONFIG = GPT2Config(
    vocab_size=60, n_positions=T, n_embd=H * K, n_layer=2, n_head=H, initializer_range=0.1,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def without_accelerators(monkeypatch):
    monkeypatch.setattr(engines, "INTERPRET", True)
    monkeypatch.setattr(engines, "CUDNN", "xla")


def use(engine: str) -> GPT2Config:
    return dataclasses.replace(CONFIG, attention=engine)


def qkv() -> list[jax.Array]:
    return list(jnp.asarray(np.random.default_rng(0).normal(size=(3, B, H, T, K)), jnp.float32))


def segments() -> np.ndarray:
    return np.cumsum(np.random.default_rng(1).random((B, T)) < 0.02, axis=1).astype(np.int32)


@functools.cache
def value_and_grads(engine: str, apart: bool):
    """The result and the gradients of a weighted sum of it."""
    of = segments() if apart else None
    weights = np.random.default_rng(2).normal(size=(B, H, T, K)).astype(np.float32)

    @jax.jit
    def run(q, k, v):
        attend = lambda *qkv: make_attention(use(engine), T, of)(*qkv, jnp.float32(0.125), None)
        return attend(q, k, v), jax.grad(lambda *qkv: (attend(*qkv) * weights).sum(), argnums=(0, 1, 2))(q, k, v)

    return run(*qkv())


@pytest.mark.parametrize("apart", [False, True], ids=["whole", "documents apart"])
@pytest.mark.parametrize("engine", ["splash", "cudnn"])
def test_an_engine_is_plain_attention(engine, apart):
    got, wanted = value_and_grads(engine, apart), value_and_grads("xla", apart)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5), got, wanted)


@functools.cache
def model_batch():
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, CONFIG.vocab_size, (4, T + 1)).astype(np.int32)
    of = np.cumsum(rng.random((4, T)) < 0.02, axis=1).astype(np.int32)
    return {"tokens": tokens, "mask": rng.random((4, T)) < 0.8, "segments": of}


@functools.cache
def loss_and_norm(engine: str, mesh: MeshConfig, devices: int) -> np.ndarray:
    """The loss of a whole model and the norm of each gradient."""
    mesh = make_mesh(mesh, jax.devices()[:devices])
    init = functools.partial(GPT2, use(engine))
    shardings = tree_shardings(jax.eval_shape(init, jax.random.key(0)), mesh)
    model = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    step = on_mesh(mesh, jax.jit(jax.value_and_grad(sum_of_losses)))
    loss, grads = step(model, global_batch(model_batch(), mesh))
    return np.array([loss, *(jnp.linalg.norm(leaf) for leaf in jax.tree.leaves(grads))])


@pytest.mark.parametrize("mesh", [MeshConfig(1), MeshConfig(1, 2, 4), MeshConfig(2, 1, 2, 2)], ids=str)
def test_splash_on_a_mesh(mesh):
    devices = mesh.data * mesh.fsdp * mesh.model * mesh.sequence
    np.testing.assert_allclose(loss_and_norm("splash", mesh, devices), loss_and_norm("xla", MeshConfig(), 1), rtol=2e-5)


def test_auto_takes_the_kernel_of_the_platform_where_it_can():
    half = dataclasses.replace(CONFIG, dtype="bfloat16")
    assert choose(half, "tpu", 1024) == "splash" and choose(half, "tpu", 1024, sequence=4) == "splash"
    assert choose(half, "gpu", 1000) == "cudnn" and choose(half, "cpu", 1024) == "xla"
    assert choose(CONFIG, "tpu", 1024) == "splash"
    for changes, platform, T, sequence in (
        ({"attn_pdrop": 0.1}, "tpu", 1024, 1),
        ({"attn_pdrop": 0.1}, "gpu", 1024, 1),
        ({"reorder_and_upcast_attn": True}, "tpu", 1024, 1),
        ({}, "tpu", 1000, 1),
        ({}, "tpu", 1024, 16),
        ({}, "gpu", 1024, 2),
        ({"dtype": "float32"}, "gpu", 1024, 1),
    ):
        assert choose(dataclasses.replace(half, **changes), platform, T, sequence) == "xla"
    assert choose(use("xla"), "tpu", 1024) == "xla"


@pytest.mark.parametrize(
    ("changes", "platform", "T", "sequence", "says"),
    [
        ({"attention": "splash"}, "cpu", 1024, 1, "'splash', which runs on a TPU, and this mesh is of CPU; change"),
        ({"attention": "cudnn"}, "tpu", 1024, 1, "'cudnn', which runs on a GPU, and this mesh is of TPU"),
        ({"attention": "splash", "attn_pdrop": 0.1}, "tpu", 1024, 1, "has no dropout, and model.attn_pdrop is 0.1"),
        ({"attention": "splash"}, "tpu", 1000, 1, "takes multiples of 128 tokens a device, and a sequence has 1000"),
        ({"attention": "cudnn"}, "gpu", 1024, 1, "takes bfloat16, and model.dtype is 'float32'"),
        ({"attention": "cudnn", "dtype": "bfloat16"}, "gpu", 1024, 2, "takes whole sequences, and mesh.sequence is 2"),
        ({"attention": "splash", "reorder_and_upcast_attn": True}, "tpu", 1024, 1, "asks for float32"),
    ],
)  # fmt: skip
def test_what_an_engine_cannot_do_is_refused(changes, platform, T, sequence, says):
    with pytest.raises(InputError, match=says):
        choose(dataclasses.replace(CONFIG, **changes), platform, T, sequence)


def test_an_unknown_engine():
    with pytest.raises(InputError, match=r"model.attention is 'flash'; it must be one of auto, xla, splash, cudnn"):
        use("flash")

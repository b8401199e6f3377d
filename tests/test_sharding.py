import functools
import re

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from gpt2_jax import InputError
from gpt2_jax.config import MeshConfig, OptimizerConfig
from gpt2_jax.data.rows import Rows
from gpt2_jax.model import parameter_name
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.partitions import AXES
from gpt2_jax.sharding import check_mesh, global_batch, make_mesh, on_one_device, rows_of, tree_shardings
from gpt2_jax.training.optimizer import make_optimizer
from gpt2_jax.training.step import init_state


def test_minus_one_takes_the_devices_that_are_left():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "model": 1, "sequence": 1}
    sizes = {"data": 2, "fsdp": 2, "model": 1, "sequence": 2}
    assert dict(make_mesh(MeshConfig(data=2, fsdp=-1, sequence=2)).shape) == sizes
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=4, model=4), "mesh.model=4, mesh.sequence=1 is 16 devices and there are 8; set"),
        (MeshConfig(data=-1, model=3), "mesh.model=3, mesh.sequence=1 needs a multiple of 3 devices"),
        (MeshConfig(data=1), "is 1 devices and there are 8"),
    ],
)  # fmt: skip
def test_a_mesh_of_other_size(config, message):
    with pytest.raises(InputError, match=message):
        make_mesh(config)


@pytest.mark.parametrize(
    ("config", "model", "batch", "message"),
    [
        (MeshConfig(), {}, 6, r"training.batch_size is 6 sequences, which 8 devices \(mesh.data=8 x mesh.fsdp=1\)"
                              " cannot share; use a multiple of 8, such as 8"),
        (MeshConfig(data=1, model=8), {}, 8, r"n_head is 4; .* mesh.model \(8\): set that to one of 1, 2, 4$"),
        (MeshConfig(data=4, model=2), {"n_head": 25, "n_embd": 1600}, 8, r"n_head is 25; .* one of 1, 5$"),
        (MeshConfig(data=2, sequence=4), {}, 8, r"the sequence length is 30; it must be a multiple of mesh.sequence"),
        (MeshConfig(data=1, fsdp=2, sequence=4), {"n_embd": 36}, 8, r"multiple of mesh.fsdp x mesh.sequence \(8\)"),
        (MeshConfig(data=1, fsdp=8), {"n_embd": 36}, 8, r"model.n_embd is 36; it must be a multiple of mesh.fsdp"),
        (MeshConfig(data=2, model=4), {"n_inner": 30}, 8, "model.n_inner is 30"),
        (MeshConfig(data=2, model=4), {"vocab_multiple": 1, "vocab_size": 101}, 8, "the padded vocabulary .* is 101"),
    ],
)  # fmt: skip
def test_what_the_mesh_cannot_cut(config, model, batch, message):
    model = GPT2Config(**({"n_embd": 32, "n_head": 4} | model))
    with pytest.raises(InputError, match=message):
        check_mesh(make_mesh(config), model, {"training.batch_size": batch}, {"the sequence length": 30})


def test_parameters_and_their_moments_are_cut_alike(tiny):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    check_mesh(mesh, tiny, {"training.batch_size": 4}, {"the sequence length": 32})
    shards = ("fsdp", "sequence")
    init = functools.partial(init_state, tiny, make_optimizer(OptimizerConfig(), 10), 0)
    state = jax.jit(init, out_shardings=tree_shardings(jax.eval_shape(init), mesh))()
    found = {}  # {name: specs of the parameter and of its two moments}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        name = re.sub(r"^(model|opt_state.*\.(mu|nu))\.", "", parameter_name(path))
        found.setdefault(name, []).append(leaf.sharding.spec)
    replicated = [f"{layer}.{leaf}" for layer in ("h.ln_1", "h.ln_2", "ln_f") for leaf in ("scale", "bias")]
    replicated += ["h.attn.c_proj.bias", "h.mlp.c_proj.bias"]
    specs = dict.fromkeys(replicated, P()) | {
        "wte.embedding": P("model", shards),
        "wpe.embedding": P(None, shards),
        "h.attn.c_attn.kernel": P(None, shards, None, "model"),
        "h.attn.c_attn.bias": P(None, None, "model"),
        "h.attn.c_proj.kernel": P(None, "model", shards),
        "h.mlp.c_fc.kernel": P(None, shards, "model"),
        "h.mlp.c_fc.bias": P(None, "model"),
        "h.mlp.c_proj.kernel": P(None, "model", shards),
    }
    assert {name: found.pop(name) for name in specs} == {name: [spec] * 3 for name, spec in specs.items()}
    assert found and all(set(rest) == {P()} for rest in found.values())  # counters and the key
    kernel = state.model.h.attn.c_attn.kernel[...]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size


class Device:
    """A TPU of a slice, as far as meshes look at it."""

    def __init__(self, number: int, slice_index: int):
        self.id, self.slice_index, self.platform, self.device_kind, self.process_index = (
            number,
            slice_index,
            "cpu",
            "",
            0,
        )


def test_slices_share_the_batch_alone(monkeypatch):
    devices = [Device(i, i % 2) for i in range(8)]
    monkeypatch.setattr(jax, "make_mesh", lambda sizes, axes, *, devices, **_: Mesh(np.reshape(devices, sizes), axes))
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2), devices)
    assert [[d.slice_index for d in row.flat] for row in mesh.devices] == [[0, 0], [0, 0], [1, 1], [1, 1]]
    with pytest.raises(InputError, match=r"mesh.data is 1, and the devices are 2 slices, .* make it a multiple of 2"):
        make_mesh(MeshConfig(data=1, fsdp=8), devices)
    with pytest.raises(InputError, match=r"mesh.slices is 4, and the devices are of 2; set it to 0"):
        make_mesh(MeshConfig(slices=4), devices)


def test_slices_of_devices_that_say_nothing():
    mesh = make_mesh(MeshConfig(data=-1, fsdp=2, slices=2))
    assert [[d.id for d in row.flat] for row in mesh.devices] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    with pytest.raises(InputError, match=r"mesh.slices is 3, which does not divide the 8 devices"):
        make_mesh(MeshConfig(slices=3))


def test_a_copy_on_one_device_is_equal(tiny_model):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    cut = jax.device_put(tiny_model, tree_shardings(tiny_model, mesh))
    copy = on_one_device(cut, mesh)
    assert {device for x in jax.tree.leaves(copy) for device in x.devices()} == {jax.devices()[0]}
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(copy), jax.tree.leaves(tiny_model))


def test_a_batch_is_cut_over_data_and_fsdp():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, model=2))
    batch = global_batch({"tokens": np.arange(40).reshape(8, 5)}, mesh)["tokens"]
    assert batch.sharding.spec == P(("data", "fsdp")) and batch.addressable_shards[0].data.shape == (2, 5)
    np.testing.assert_array_equal(batch, np.arange(40).reshape(8, 5))


class Held:
    """A device of a process, as far as rows look at it."""

    def __init__(self, number: int, process: int):
        self.id, self.process_index = number, process


@pytest.mark.parametrize(
    ("sizes", "processes", "wanted"),
    [
        ((4, 2, 1, 1), "00001111", [Rows(2, (0,), (0,)), Rows(2, (1,), (1,))]),
        ((1, 2, 1, 4), "00112233", [Rows(2, (0,), (0,)), Rows(2, (0,), ()), Rows(2, (1,), (1,)), Rows(2, (1,), ())]),
        ((1, 1, 4, 2), "00112233", [Rows(), *[Rows(1, (0,), ())] * 3]),
        ((8, 1, 1, 1), "00110011", [Rows(4, (0, 2), (0, 2)), Rows(4, (1, 3), (1, 3))]),
    ],
)  # fmt: skip
def test_processes_read_the_rows_that_their_devices_hold(sizes, processes, wanted):
    devices = [Held(i, int(process)) for i, process in enumerate(processes)]
    mesh = Mesh(np.reshape(devices, sizes), AXES)
    assert [rows_of(mesh, process) for process in range(len(wanted))] == wanted


def test_the_numbers_of_rows():
    assert Rows(4, (1, 3), ()).of(8).tolist() == [2, 3, 6, 7]
    assert Rows().of(3).tolist() == [0, 1, 2]
    assert Rows.part(1, 2) == Rows(2, (1,), (1,))


def test_an_empty_transformation_has_nothing_to_cut(tiny):
    shapes = jax.eval_shape(functools.partial(init_state, tiny, optax.identity(), 0))
    mesh = make_mesh(MeshConfig())
    assert all(s.mesh == mesh for s in jax.tree.leaves(tree_shardings(shapes, mesh)))


def test_a_mesh_of_somebody_else_is_left_alone(tiny_model):
    tokens = np.zeros((2, 5), np.int32)
    wanted = tiny_model(tokens)
    with jax.set_mesh(jax.make_mesh((2, 4), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)):
        np.testing.assert_allclose(jax.jit(lambda model: model(tokens))(tiny_model), wanted, rtol=1e-5, atol=1e-5)

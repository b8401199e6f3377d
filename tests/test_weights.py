import dataclasses
import json
import math
import re
import struct
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import serialization

from gpt2_jax import weights
from gpt2_jax.config import MeshConfig
from gpt2_jax.errors import InputError
from gpt2_jax.model import GPT2, parameter_name, unstack
from gpt2_jax.sharding import make_mesh, tree_shardings
from gpt2_jax.weight_layout import file_shapes

INNER = 40


@pytest.fixture(scope="module")
def config(tiny):
    """Eleven layers, as "10" sorts before "2"; an MLP width that is no multiple of the model's."""
    return dataclasses.replace(tiny, n_layer=11, n_embd=16, n_inner=INNER)


@pytest.fixture(scope="module")
def model(config):
    """Every number is random, biases and norms too."""
    rng = np.random.default_rng(1)
    model = jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0))

    def randomised(path, x):
        return x if parameter_name(path) == "wte.embedding" else x + 0.3 * rng.standard_normal(x.shape, np.float32)

    return jax.tree_util.tree_map_with_path(randomised, model)


@pytest.fixture(scope="module")
def untied(config):
    return jax.jit(GPT2, static_argnums=0)(dataclasses.replace(config, tie_word_embeddings=False), jax.random.key(2))


@pytest.fixture(scope="module")
def arrays(model):
    """{name: array} as GPT2LMHeadModel names and orders them, "h.0.attn.c_attn.weight" (in, out)."""
    return torch_arrays(model)


def torch_arrays(model):
    """What the files hold, from the stacked model's leaves and not by the code that is tested."""
    config, found = model.config, {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        name, leaf = parameter_name(path), np.asarray(leaf)
        part = name.rpartition(".")[2]
        renamed = name if part == "bias" else name.removesuffix(part) + "weight"
        if not name.startswith("h."):
            found[renamed] = leaf[: config.vocab_size] if "wte" in name or "lm_head" in name else leaf
            continue
        for i, array in enumerate(leaf):
            array = array.reshape(*array.shape[:-2], 3 * config.n_embd) if "c_attn" in name else array
            found[f"h.{i}.{renamed[2:]}"] = array
    return found


def flax_tree(arrays):
    """The same as FlaxGPT2LMHeadModel.params: kernels (out, in), but lm_head (in, out) of its Dense."""
    tree = {"transformer": {"h": {}}}
    for name, array in sorted(arrays.items()):
        *folders, part = name.split(".")
        if folders == ["lm_head"]:
            tree["lm_head"] = {"kernel": np.ascontiguousarray(array.T)}
            continue
        node = tree["transformer"]
        for folder in folders:
            node = node.setdefault(folder, {})
        if part == "weight":
            last = folders[-1]
            part = "embedding" if last in ("wte", "wpe") else "scale" if last.startswith("ln_") else "kernel"
        node[part] = np.ascontiguousarray(array.T) if part == "kernel" else array
    return dict(sorted(tree.items()))


def safetensors(arrays, prefix="transformer."):
    """The bytes of a file, with the float types that numpy and ml_dtypes have."""
    types = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "int64": "I64", "bool": "BOOL"}
    header, start = {}, 0
    for name, array in arrays.items():
        name, stop = name if name.startswith("lm_head") else prefix + name, start + array.nbytes
        header[name] = {"dtype": types[array.dtype.name], "shape": array.shape, "data_offsets": [start, stop]}
        start = stop
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + b"".join(array.tobytes() for array in arrays.values())


def write(folder, format, arrays, **options):
    file = folder / weights.FILES[format]
    file.write_bytes(
        safetensors(arrays, **options) if format == "safetensors" else serialization.to_bytes(flax_tree(arrays))
    )
    return weights.find(folder)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("format", weights.FILES)
def test_files_of_the_other_libraries_give_the_model_and_its_bytes_come_back(
    format, tied, model, untied, tokens, tmp_path
):
    model = model if tied else untied
    arrays = torch_arrays(model)
    assert ("lm_head.weight" in arrays) is not tied
    files = write(tmp_path, format, dict(sorted(arrays.items())))
    apart, stacked = (weights.load(files, model.config, stacked=stacked) for stacked in (False, True))
    assert_same(stacked, model)
    assert_same(apart, unstack(model))
    np.testing.assert_array_equal(stacked(tokens), model(tokens))
    np.testing.assert_allclose(apart(tokens), model(tokens), atol=2e-4)
    saved = {}
    for name, same in (("apart", apart), ("stacked", stacked)):
        (tmp_path / name).mkdir()
        saved[name] = weights.save(same, tmp_path / name, format).read_bytes()
    assert saved["apart"] == saved["stacked"]
    if format == "flax":
        assert saved["apart"] == files[0].read_bytes()
    again = weights.load(weights.find(tmp_path / "apart"), model.config)
    assert_same(again, apart)
    assert weights.save(again, tmp_path / "stacked", format).read_bytes() == saved["apart"]


def test_both_formats_hold_the_same(model, tmp_path):
    for format in weights.FILES:
        (tmp_path / format).mkdir()
        weights.save(model, tmp_path / format, format)
    raw = (tmp_path / "safetensors" / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert list(header) == sorted("transformer." + name for name in torch_arrays(model))
    restored = serialization.msgpack_restore((tmp_path / "flax" / "flax_model.msgpack").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, restored, flax_tree(torch_arrays(model)))
    opened = [weights.load(weights.find(tmp_path / format), model.config) for format in weights.FILES]
    assert_same(*opened)
    (tmp_path / "flax" / "flax_model.msgpack").rename(tmp_path / "safetensors" / "flax_model.msgpack")
    assert weights.find(tmp_path / "safetensors") == [tmp_path / "safetensors" / "model.safetensors"]  # comes first
    by_name = tmp_path / "safetensors" / "flax_model.msgpack"
    assert weights.find(by_name) == [by_name]


def test_the_square_projection_is_not_transposed_twice(model, tokens, tmp_path, arrays):
    """Of (C, C) no shape tells the order: a file with it turned must give other logits."""
    turned = {n: np.ascontiguousarray(a.T) if n.endswith("attn.c_proj.weight") else a for n, a in arrays.items()}
    got = weights.load(write(tmp_path, "safetensors", turned), model.config)(tokens)
    assert np.abs(np.asarray(got - model(tokens))).max() > 0.01


def test_with_and_without_prefix_head_and_buffers(model, config, arrays, tmp_path):
    n = config.n_positions
    buffers = {"h.0.attn.bias": np.tril(np.ones((1, 1, n, n), bool)), "h.10.attn.masked_bias": np.float32([-1e4])}
    head = {"lm_head.weight": arrays["wte.weight"]}
    want = unstack(model)
    for prefix in ("", "transformer."):
        for more in ({}, head, buffers, head | buffers):
            assert_same(weights.load(write(tmp_path, "safetensors", arrays | more, prefix=prefix), config), want)
    (tmp_path / "model.safetensors").unlink()
    assert_same(weights.load(write(tmp_path, "flax", arrays | head), config), want)


@pytest.mark.parametrize("format", weights.FILES)
def test_a_tied_head_must_be_the_embedding(format, config, arrays, tmp_path):
    other = arrays["wte.weight"].copy()
    other[3, 4] += 1e-3
    files = write(tmp_path, format, arrays | {"lm_head.weight": other})
    with pytest.raises(InputError, match=r"an lm_head that differs from wte.*set tie_word_embeddings to false there"):
        weights.load(files, config)
    loaded = weights.load(files, dataclasses.replace(config, tie_word_embeddings=False))
    np.testing.assert_array_equal(loaded.lm_head.embedding[: config.vocab_size], other)
    assert not loaded.lm_head.embedding[config.vocab_size :].any()


def test_an_untied_model_needs_its_head(config, arrays, tmp_path):
    with pytest.raises(InputError, match=r"lacks 1 \(lm_head.embedding\) for 11 layers"):
        weights.load(write(tmp_path, "safetensors", arrays), dataclasses.replace(config, tie_word_embeddings=False))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("format", weights.FILES)
def test_half_precision_files_are_widened(format, dtype, config, arrays, tmp_path):
    half = {name: array.astype(dtype) for name, array in arrays.items()}
    got = weights.load(write(tmp_path, format, half), config, stacked=True)
    for name, array in torch_arrays(got).items():
        np.testing.assert_array_equal(array, half[name].astype(np.float32))


@pytest.mark.parametrize("format", weights.FILES)
def test_wrong_entries_are_named(format, config, arrays, tmp_path):
    def message(changes, drop=()):
        changed = {name: array for name, array in (arrays | changes).items() if name not in drop}
        with pytest.raises(InputError) as caught:
            weights.load(write(tmp_path, format, changed), config)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    assert "lacks 1 (h.3.ln_1.bias) for 11 layers; give the config.json" in message({}, ["h.3.ln_1.bias"])
    assert "has unexpected 1 (h.11.ln_1.bias)" in message({"h.11.ln_1.bias": np.zeros(16, np.float32)})
    both = message({f"x{i}.bias": np.zeros(1, np.float32) for i in range(6)}, ["wte.weight"])
    assert "lacks 1 (wte.embedding) and has unexpected 6 (x0.bias, x1.bias, x2.bias, x3.bias, ...)" in both
    wide = {"h.2.mlp.c_fc.weight": np.zeros((16, INNER + 1), np.float32)}
    assert "has h.2.mlp.c_fc.kernel of shape (" in message(wide)
    assert "config.json asks for (101, 16)" in message({"wte.weight": np.zeros((102, 16), np.float32)})
    assert "wpe.embedding of shape (31, 16)" in message({"wpe.weight": np.zeros((31, 16), np.float32)})
    for dtype, name in ((np.float64, "F64"), (np.int64, "I64"), (bool, "BOOL")):
        name = name if format == "safetensors" else np.dtype(dtype).name
        wrong = message({"h.0.ln_1.bias": np.zeros(16, dtype)})
        assert f"has h.0.ln_1.bias of type {name}; weights must be float32, float16, bfloat16" in wrong


def test_a_parameter_may_not_come_twice(config, arrays, tmp_path):
    twice = {f"transformer.{name}": array for name, array in arrays.items()} | {"wpe.weight": arrays["wpe.weight"]}
    with pytest.raises(InputError, match=r"has a second wpe\.embedding; each parameter must be there once"):
        weights.load(write(tmp_path, "safetensors", twice, prefix=""), config)


@pytest.fixture
def sharded(arrays, tmp_path):
    """Writes a model in three files and an index; gives its folder."""

    def make(format):
        stem, suffix = weights.FILES[format].split(".")
        names, index = sorted(arrays), {}
        for part in range(3):
            some = {name: arrays[name] for name in names[part::3]}
            file = f"{stem}-{part + 1:05}-of-00003.{suffix}"
            content = safetensors(some) if format == "safetensors" else serialization.to_bytes(flax_tree(some))
            (tmp_path / file).write_bytes(content)
            index |= dict.fromkeys(some, file)
        (tmp_path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
        return tmp_path

    return make


@pytest.mark.parametrize("format", weights.FILES)
def test_shards(format, sharded, config, model):
    folder = sharded(format)
    files = weights.find(folder)
    assert len(files) == 3
    assert_same(weights.load(files, config), unstack(model))
    files[1].unlink()
    with pytest.raises(InputError, match=rf"names {files[1].name}, which is missing; fetch all 3 files"):
        weights.find(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is no index of weight files"),
        ("[]", "is no index of weight files"),
        ("[" * 100_000, "is no index of weight files"),
        ('{"weight_map": {}}', "is no index of weight files"),
        ('{"weight_map": 5}', "is no index of weight files"),
        ('{"weight_map": {"a": 5}}', "is no index of weight files"),
        ('{"weight_map": {"a": ["b"]}}', "is no index of weight files"),
        (
            '{"weight_map": {"a": "../model.safetensors"}}',
            "which is no weight file beside it; do not trust this folder",
        ),
        ('{"weight_map": {"a": "/etc/passwd"}}', "names '/etc/passwd', which is no weight file beside it"),
        ('{"weight_map": {"a": "model.bin"}}', "names 'model.bin', which is no weight file beside it"),
        ('{"weight_map": {"a": "x.msgpack"}}', "names 'x.msgpack', which is no weight file beside it"),
        ('{"weight_map": {"a": ".."}}', "names '..', which is no weight file"),
        ('{"weight_map": {"a": "a\\u0000.safetensors"}}', "which is no weight file beside it"),
        ('{"weight_map": {"a": "%s.safetensors"}}' % ("é" * 200), "which is no weight file beside it"),
        ('{"weight_map": {"a": "a.safetensors"}}', "names a.safetensors, which is missing; fetch all 1 files"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "('a' is there twice); fetch it again"),
    ],
)
def test_bad_indices(index, message, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=re.escape(message)):
        weights.find(tmp_path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("pytorch_model.bin", "a pickle, which can run any code"),
        ("ckpt.pt", "a pickle, which can run any code"),
        ("model.pth", "a pickle, which can run any code"),
        ("tf_model.h5", "a TensorFlow file"),
        ("gpt2.gguf", "a file of llama.cpp"),
    ],
)
def test_other_files_are_refused_with_the_way_out(name, what, tmp_path):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=rf"{name} is {what}, and is not opened: .*save_pretrained\(\"safe\"\)"):
            weights.find(path)


def test_a_link_out_of_the_folder_is_followed_as_those_of_the_hub_s_cache(config, model, arrays, tmp_path):
    (tmp_path / "blobs").mkdir()
    write(tmp_path / "blobs", "safetensors", arrays)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.safetensors").symlink_to(tmp_path / "blobs" / "model.safetensors")
    index = tmp_path / "snapshot" / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "a.safetensors"}}')
    assert_same(weights.load(weights.find(tmp_path / "snapshot"), config), unstack(model))
    (tmp_path / "blobs" / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"names a\.safetensors, which is missing; fetch all 1 files"):
        weights.find(tmp_path / "snapshot")


def test_layers_that_no_file_has_cost_nothing(config, arrays, tmp_path):
    files = write(tmp_path, "safetensors", arrays)
    with pytest.raises(InputError, match=r"too few for the 1,000,000,000 layers of config\.json; give the"):
        weights.load(files, dataclasses.replace(config, n_layer=10**9))


def test_nothing_to_find(tmp_path):
    with pytest.raises(InputError, match=r"/dev/null is no file and no folder; give a folder with GPT-2's weights"):
        weights.find(Path("/dev/null"))
    with pytest.raises(InputError, match=r"has no model\.safetensors and no flax_model\.msgpack; give a folder"):
        weights.find(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"notes\.txt is no kind of file that holds weights here"):
        weights.find(tmp_path / "notes.txt")


@pytest.mark.parametrize("format", weights.FILES)
def test_every_sharding_gives_the_same(format, tiny, tiny_model, tokens, tmp_path):
    weights.save(tiny_model, tmp_path, format)
    files = weights.find(tmp_path)
    shapes = jax.eval_shape(lambda: tiny_model)
    for sizes in ((2, 2, 2), (1, 8, 1), (1, 2, 4)):
        shardings = tree_shardings(shapes, make_mesh(MeshConfig(*sizes)))
        loaded = weights.load(files, tiny, stacked=True, shardings=shardings)
        assert_same(loaded, tiny_model)
        assert jax.tree.leaves(jax.tree.map(lambda x: x.sharding, loaded)) == jax.tree.leaves(shardings)
    add = jax.jit(lambda model: jax.tree.map(lambda x: x + 1, model), donate_argnums=0)
    assert_same(add(loaded), jax.tree.map(lambda x: x + 1, tiny_model))  # its memory may be given away


def test_on_one_device_nothing_is_copied(tiny, tiny_model, tmp_path, monkeypatch):
    weights.save(tiny_model, tmp_path, "safetensors")
    memory, aligned = set(), weights._aligned

    def remembered(shape):
        array = aligned(shape)
        assert array.shape == tuple(shape) and array.ctypes.data % 64 == 0
        memory.add(array.ctypes.data)
        return array

    monkeypatch.setattr(weights, "_aligned", remembered)
    for stacked in (True, False):
        leaves = jax.tree.leaves(weights.load(weights.find(tmp_path), tiny, stacked=stacked))
        large = [x for x in leaves if x.nbytes > 1000]
        assert len(large) > 5 and all(x.unsafe_buffer_pointer() in memory for x in large)


def test_a_shorter_context_crops_the_positions(config, model, arrays, tokens, tmp_path):
    files = write(tmp_path, "safetensors", arrays)
    short = weights.load(files, dataclasses.replace(config, n_positions=16))
    assert short.wpe.embedding.shape == (16, 16)
    np.testing.assert_allclose(short(tokens), model(tokens), atol=2e-4)


def test_save_refuses_other_formats(model, tmp_path):
    with pytest.raises(InputError, match="format is 'torch'; it must be one of safetensors, flax"):
        weights.save(model, tmp_path, "torch")


def test_file_shapes_are_the_model_s(config, model, arrays):
    shapes = file_shapes(config, flax_order=False)
    assert sorted(math.prod(shape) for shape in shapes.values()) == sorted(array.size for array in arrays.values())

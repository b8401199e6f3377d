"""Weight files and their index, changed at random and built to harm."""

import json
import struct

import msgpack
import numpy as np
import pytest
from hypothesis import strategies as st
from mutations import accepted, damaged_bytes, damaged_json, fuzz

from gpt2_jax import weights
from gpt2_jax.tensor_files import TYPES


def read(path, config):
    """All that loading reads of a model's files: headers, names, shapes and numbers."""

    def load():
        files = weights.find(path)
        model = weights.load(files, config)
        assert np.isfinite(np.asarray(model.wte.embedding[...])).all()
        for tensor in weights.READERS[files[0].suffix](files[0]).values():
            if tensor.dtype in TYPES:
                assert tensor.read().shape == tensor.shape
        return model

    return accepted(load, path)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def good(saved):
    return {format: (folder / weights.FILES[format]).read_bytes() for format, folder in saved.items()}


@fuzz(15)
def test_safetensors_with_a_damaged_header(small, good, scratch, data):
    content = good["safetensors"]
    length = int.from_bytes(content[:8], "little")
    header = damaged_json(data, content[8 : 8 + length])
    stated = data.draw(st.sampled_from([len(header)] * 8 + [0, 2**30, 2**63, 2**64 - 1]))
    file = scratch / "x.safetensors"
    file.write_bytes(struct.pack("<Q", stated) + header + content[8 + length :])
    read(file, small)


@pytest.mark.parametrize("format", weights.FILES)
@fuzz(15)
def test_damaged_bytes(format, small, good, scratch, data):
    file = scratch / f"x{weights.FILES[format][-12:]}"
    file.write_bytes(damaged_bytes(data, good[format]))
    read(file, small)


@fuzz(15)
def test_msgpack_with_other_values(small, good, scratch, data):
    """Values that are no arrays, arrays that are others, folders in folders."""
    tree = msgpack.unpackb(good["flax"])
    node = tree["transformer"]
    for _ in range(data.draw(st.integers(0, 3))):
        key = data.draw(st.sampled_from(sorted(node)))
        node = node[key] if isinstance(node[key], dict) else node
    key = data.draw(st.sampled_from(sorted(node)))
    shape = data.draw(st.lists(st.sampled_from([0, 1, 2, 2**31, 2**62, -1, "a", None]), max_size=9))
    dtype = data.draw(st.sampled_from(["float32", "float64", "object", "O", "", "\n", 5, None, "bfloat16"]))
    array = msgpack.ExtType(1, msgpack.packb([shape, dtype, bytes(data.draw(st.integers(0, 16)))]))
    deep = {}
    for _ in range(data.draw(st.integers(1, 400))):
        deep = {"a": deep}
    other = msgpack.ExtType(data.draw(st.integers(0, 127)), data.draw(st.binary(max_size=20)))
    values = [array, array, msgpack.Timestamp(1), other, 1, None, [[]], deep]
    node[key] = values[data.draw(st.integers(0, len(values) - 1))]
    file = scratch / "x.msgpack"
    file.write_bytes(msgpack.packb(tree))
    read(file, small)


@fuzz(15)
def test_damaged_index(small, good, scratch, data):
    folder = scratch / "index"
    folder.mkdir(exist_ok=True)
    (folder / "a.safetensors").write_bytes(good["safetensors"])
    index = folder / "model.safetensors.index.json"
    index.write_bytes(damaged_json(data, json.dumps({"metadata": {}, "weight_map": {"x": "a.safetensors"}})))
    read(folder, small)
    index.write_bytes(damaged_bytes(data, b'{"weight_map": {"x": "a.safetensors"}}'))
    read(folder, small)


@pytest.mark.parametrize("format", weights.FILES)
@fuzz(10)
def test_raw_bytes(format, small, scratch, data):
    file = scratch / f"raw{weights.FILES[format][-12:]}"
    file.write_bytes(data.draw(st.binary(max_size=100)))
    assert read(file, small)[1]


@fuzz(10)
def test_bits_of_numbers_that_are_not_finite_are_named(small, good, scratch, data):
    content = bytearray(good["safetensors"])
    start = 8 + int.from_bytes(content[:8], "little")
    at = start + 4 * data.draw(st.integers(0, (len(content) - start) // 4 - 1))
    bits = data.draw(st.sampled_from([0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF]))
    content[at : at + 4] = struct.pack("<I", bits)
    file = scratch / "nan.safetensors"
    file.write_bytes(content)
    assert "that are not finite, the first " in read(file, small)[1]

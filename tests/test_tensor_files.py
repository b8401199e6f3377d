import json
import os
import pickle
import struct
import tracemalloc

import ml_dtypes
import msgpack
import numpy as np
import pytest
from flax import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax.errors import InputError
from gpt2_jax.tensor_files import read_msgpack, read_safetensors, write_msgpack, write_safetensors, writing

RNG = np.random.default_rng(0)
ARRAYS = {
    "h/0/kernel": RNG.standard_normal((3, 5), np.float32),
    "h/10/kernel": RNG.standard_normal((2, 2), np.float32),
    "h/9/é": RNG.standard_normal((1,), np.float32),
    "wte/embedding": RNG.standard_normal((40, 5), np.float32),
}
READERS = {"safetensors": read_safetensors, "msgpack": read_msgpack}


def tree(arrays):
    """{"a/b": x} -> {"a": {"b": x}}"""
    root = {}
    for path, array in arrays.items():
        *folders, name = path.split("/")
        node = root
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = array
    return root


def safetensors_bytes(header, data=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def entry(dtype="F32", shape=(2,), start=0, stop=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a good file by its kind."""
    folder = tmp_path_factory.mktemp("good")
    write_msgpack(folder / "x.msgpack", ARRAYS, ARRAYS.__getitem__)
    write_safetensors(folder / "x.safetensors", {n: a.shape for n, a in ARRAYS.items()}, ARRAYS.__getitem__)
    return {kind: (folder / f"x.{kind}").read_bytes() for kind in READERS}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch") / "file"


def refused(kind, file, content):
    """The message of the one exception that `content` may raise, for little memory, or None."""
    file.write_bytes(content)
    tracemalloc.start()
    try:
        READERS[kind](file)
        return None
    except InputError as error:
        assert str(file) in str(error) and "\n" not in str(error)
        return str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2_000_000


@pytest.mark.parametrize("kind", READERS)
def test_what_is_written_is_read(kind, good, scratch):
    scratch.write_bytes(good[kind])
    found = READERS[kind](scratch)
    assert found.keys() == ARRAYS.keys()
    for name, tensor in found.items():
        array = tensor.read()
        assert tensor.shape == array.shape and tensor.dtype == array.dtype == np.float32
        np.testing.assert_array_equal(array, ARRAYS[name])
        assert not isinstance(array.base, np.memmap)


def test_msgpack_is_flax_own_in_both_directions(good, scratch):
    assert good["msgpack"] == serialization.to_bytes(tree(ARRAYS))
    restored = serialization.msgpack_restore(good["msgpack"])
    np.testing.assert_array_equal(restored["h"]["10"]["kernel"], ARRAYS["h/10/kernel"])
    many = {f"h/{i}/{'long' * i}": np.zeros((i, 1), np.float32) for i in range(70)}  # map16, str8, str16, ext16
    many["wte"] = np.zeros((200, 100), np.float32)  # ext32
    many = dict(sorted(many.items(), key=lambda item: item[0].split("/")))
    write_msgpack(scratch, many, many.__getitem__)
    assert scratch.read_bytes() == serialization.to_bytes(tree(many))
    assert {name: tensor.shape for name, tensor in read_msgpack(scratch).items()} == {
        name: array.shape for name, array in many.items()
    }


def test_safetensors_has_sorted_names_and_an_aligned_header(good):
    raw = good["safetensors"]
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0 and list(header) == ["__metadata__", *sorted(ARRAYS)]
    assert header["__metadata__"] == {"format": "pt"}
    text = raw[8 : 8 + length].decode()
    assert text.rstrip(" ") == json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    assert raw[8 + length :] == b"".join(ARRAYS[name].tobytes() for name in sorted(ARRAYS))
    assert header["h/0/kernel"] == {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_exactly(dtype, scratch):
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    every = every[np.isfinite(every.astype(np.float32))]
    name = {np.float16: "F16"}.get(dtype, "BF16")
    scratch.write_bytes(safetensors_bytes({"x": entry(name, every.shape, 0, every.nbytes)}, every.tobytes()))
    wide = read_safetensors(scratch)["x"].read()
    assert wide.dtype == np.float32 and np.array_equal(wide.astype(dtype).view(np.uint16), every.view(np.uint16))
    scratch.write_bytes(serialization.to_bytes({"x": every}))
    np.testing.assert_array_equal(read_msgpack(scratch)["x"].read(), wide)


@pytest.mark.parametrize("kind", READERS)
def test_a_file_cut_short_anywhere_is_refused(kind, good, scratch):
    for cut in (*range(0, len(good[kind]), 3), len(good[kind]) - 1):
        assert refused(kind, scratch, good[kind][:cut])
    assert refused(kind, scratch, good[kind] + b"\0")


@pytest.mark.parametrize("kind", READERS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(kind, good, scratch, data):
    content = bytearray(good[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        # most of the bytes are numbers; the structure comes first
        content[data.draw(st.integers(0, len(content) - 1) | st.integers(0, 60))] = data.draw(st.integers(0, 255))
    refused(kind, scratch, bytes(content))


@pytest.mark.parametrize("kind", READERS)
@settings(deadline=None, max_examples=60)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(kind, scratch, content):
    refused(kind, scratch, content)
    refused("safetensors", scratch, safetensors_bytes(content))


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{}" + b" " * 8, b"1", "has 19 bytes and its tensors need 18; fetch it again"),
        (b"[]", b"", "a header that is not safetensors'"),
        (b"[" * 100_000, b"", "a header that is not safetensors'"),
        (b'{"x": 1}', b"", "a header that is not safetensors'"),
        (b'{"x": {"dtype": "F32"}}', b"", "'x' is {'dtype': 'F32'}, without dtype, shape and data_offsets"),
        ({"x": entry(stop=9)}, bytes(9), r"is damaged: 'x' lies at bytes 0 to 9, its shape is \(2,\)"),
        ({"x": entry(), "y": entry(start=4, stop=12)}, bytes(12), "is damaged: 'y' lies at bytes 4 to 12"),
        ({"x": entry(), "y": entry()}, bytes(8), "is damaged: 'y' lies at bytes 0 to 8"),
        ({"x": entry(), "y": entry(start=12, stop=20)}, bytes(20), "is damaged: 'y' lies at bytes 12 to 20"),
        ({"x": entry(start=8, stop=0)}, bytes(8), r"'x' is of F32, shape \[2\], offsets \[8, 0\]"),
        ({"x": entry(shape=(-2,), start=0, stop=-8)}, bytes(8), r"shape \[-2\], offsets \[0, -8\]"),
        ({"x": entry(shape=(True, 2))}, bytes(8), r"shape \[True, 2\]"),
        ({"x": entry(shape=(2.0,))}, bytes(8), r"shape \[2.0\]"),
        ({"x": entry(shape=[0] * 9, stop=0)}, b"", r"shape \[0, 0, 0, 0, 0, 0, 0, 0, 0\], offsets"),
        ({"x": entry(dtype=["F32"])}, bytes(8), r"'x' is of type \['F32'\]"),
        ({"x": entry(shape=(2**60,), stop=2**62)}, bytes(8), "tensors need 4,611,686,018,427"),
        ({"x": entry(shape=(2**62,), stop=2**64)}, bytes(8), r"the number 18446744073709551616\.\.\. is too large"),
        ({"x\n": entry()}, bytes(8), r"the name 'x\\n' is too long, or cannot be printed"),
        (b'{"x": {}, "x": {}}', b"", "'x' is there twice"),
        (b'{"x\xff": {}}', b"", "'utf-8' codec can't decode byte 0xff in position 3"),
    ],
)
def test_hostile_safetensors(header, data, message, scratch):
    scratch.write_bytes(safetensors_bytes(header, data))
    with pytest.raises(InputError, match=message):
        read_safetensors(scratch)


def test_a_header_that_is_longer_than_the_file(scratch):
    scratch.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(InputError, match="cut short: it has 10 bytes and a header of 9,223,372,036,854,775,808; fetch"):
        read_safetensors(scratch)


def ndarray(*parts):
    return msgpack.ExtType(1, msgpack.packb(parts))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "the top starts with byte 0x5"),
        ([1, 2], "the top starts with byte 0x92"),
        ({"x": 5}, "x starts with byte 0x5"),
        ({1: {}}, "a key starts with byte 0x1"),
        ({"x": msgpack.ExtType(3, b"1234")}, "x is no array"),
        ({"x": ndarray([2], "float32")}, "x is no array"),
        ({"x": ndarray("ab", "float32", bytes(8))}, "x is no array"),
        ({"x": ndarray(2, "float32", bytes(8))}, "x is no array"),
        ({"x": ndarray([-2], "float32", bytes(8))}, "x is no array"),
        ({"x": ndarray([True], "float32", bytes(4))}, "x is no array"),
        ({"x": ndarray(["a"], "float32", bytes(8))}, "x is no array"),
        ({"x": ndarray([2], ["float32"], bytes(8))}, "x is no array"),
        ({"x": ndarray([2], "float32", "a string")}, "x has 0 bytes for float32"),
        ({"x": ndarray([2**60, 2**60], "float32", bytes(8))}, "x has 8 bytes for float32"),
        ({"x": ndarray([2], "float32", bytes(12))}, r"x has 12 bytes for float32\[2\]"),
        ({"x": {"__msgpack_chunked_array__": True}}, "x is larger than 1 GB and cut in pieces"),
    ],
)
def test_hostile_msgpack(value, message, scratch):
    scratch.write_bytes(msgpack.packb(value))
    with pytest.raises(InputError, match=rf"is no msgpack file of Flax parameters, or is cut short \({message}"):
        read_msgpack(scratch)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x81\xdb\xff\xff\xff\xff", "a key has 4,294,967,295 bytes, and may have 1,024"),
        (b"\xdf\xff\xff\xff\xff", "it ends too early"),  # 4 billion entries
        (b"\x81\xa1x\xc9\xff\xff\xff\xff\x01", "x ends past the file"),
        (b"\x81\xa1x\xc7\x05\x01\xdd\xff\xff\xff\xff", ""),  # a shape of 4 billion sizes
        (b"\x82\xa1x\xc7\x0d\x01" + msgpack.packb(([0], "float32", b""))[:13] + b"\xa1x", ""),
        (b"\x81\xa1x" * 33 + b"\x80", "it is nested deeper than 32"),
        (b"\x81\xa1\xff\x80", "utf-8"),
        (pickle.dumps({"a": 1}), "there is more after its end"),
    ],
)
def test_hostile_bytes(content, message, scratch):
    found = refused("msgpack", scratch, content)
    assert found and message in found


def test_an_entry_may_not_come_twice(scratch):
    one = msgpack.packb({"x": ndarray([1], "float32", bytes(4))})[1:]
    assert "x is there twice" in refused("msgpack", scratch, b"\x82" + one + one)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_by_the_name_of_the_tensor(kind, bad, scratch):
    arrays = {name: array.copy() for name, array in ARRAYS.items()}
    arrays["wte/embedding"][[7, 9], 3] = bad, -bad
    if kind == "msgpack":
        write_msgpack(scratch, arrays, arrays.__getitem__)
    else:
        write_safetensors(scratch, {n: a.shape for n, a in arrays.items()}, arrays.__getitem__)
    found = READERS[kind](scratch)
    np.testing.assert_array_equal(found["h/0/kernel"].read(), ARRAYS["h/0/kernel"])
    message = rf"file has 2 numbers in wte/embedding that are not finite, the first {bad} at \[7, 3\]; no model comp"
    with pytest.raises(InputError, match=message):
        found["wte/embedding"].read()


def test_a_sum_beyond_float32_is_of_finite_numbers(scratch):
    large = {"x": np.full((3, 2), 3e38, np.float32)}
    write_msgpack(scratch, large, large.__getitem__)
    np.testing.assert_array_equal(read_msgpack(scratch)["x"].read(), large["x"])


def test_a_file_that_becomes_shorter_while_it_is_read(good, scratch):
    scratch.write_bytes(good["safetensors"])
    tensor = read_safetensors(scratch)["wte/embedding"]
    scratch.write_bytes(good["safetensors"][:-4])
    with pytest.raises(InputError, match="became shorter while wte/embedding was read; fetch it again"):
        tensor.read()
    scratch.unlink()
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\); check it and its permissions"):
        tensor.read()


def test_a_file_appears_complete_or_not_at_all(tmp_path):
    file = tmp_path / "file"
    with writing(file) as stream:
        stream.write(b"old")
        assert not file.exists()
    with pytest.raises(ZeroDivisionError), writing(file) as stream:
        stream.write(b"new")
        raise ZeroDivisionError
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    refused = pytest.raises(InputError, match=r"could not write .*no/file: No such file or directory; make room, or")
    with refused, writing(tmp_path / "no" / "file"):
        pass

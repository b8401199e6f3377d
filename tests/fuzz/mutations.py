"""Hostile files from good ones: bytes changed anywhere, JSON changed at any place; and how they must be taken."""

import copy
import json
import os
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax.errors import InputError

TIMES = int(os.environ.get("GPT2_JAX_FUZZ", "1"))
LARGEST_PEAK = 16_000_000  # bytes that Python may take for any of the files here
VALUES = [
    None, True, False, 0, 1, -1, 2, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, 0.5,
    -0.0, 1e300, float("nan"), float("inf"), "", "a", "..", "../x", "/dev/zero", "\x00", "\ud800", "\n", "x" * 3000,
    "1", "O", "<u8", "F32", [], {}, [[]], [1], [-1], [None], {"": 0}, {"a": {"b": []}},
]  # fmt: skip


def fuzz(examples):
    """`hypothesis.given` with so many examples, or more of them: see conftest.py."""

    def decorate(test):
        return settings(settings.get_profile("fuzz"), max_examples=examples * TIMES)(given(data=st.data())(test))

    return decorate


def accepted(read, file):
    """What `read()` gives of a file, or the message of the one error that it may raise; for little memory."""
    tracemalloc.start()
    try:
        return read(), ""
    except InputError as error:
        message = str(error)
        assert str(file) in message and message.isprintable() and len(message) < 3000, message[:3000]
        return None, message
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < LARGEST_PEAK, f"{peak:,} bytes"


def damaged_bytes(data, content):
    """A few bytes changed, cut out, put in or doubled."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        # Most of a file are numbers or words; its structure comes first.
        at = data.draw(st.integers(0, min(len(content), 300)) | st.integers(0, len(content)))
        length = data.draw(st.integers(0, 9))
        put = data.draw(st.binary(max_size=9) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"[" * 2000, b"\xdd", b'"']))
        content[at : at + length] = put
    return bytes(content)


def damaged_json(data, content):
    """A JSON text with values of other types and bounds in one to three places, names gone, twice or new."""
    value = json.loads(content) if isinstance(content, bytes | str) else copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 3))):
        value = _changed(data, value)
    text = json.dumps(value)
    if data.draw(st.integers(0, 19)) == 0:
        text = text.replace('{"', '{"twice": 1, "twice": 2, "', 1)
    return text.encode()


def _changed(data, value):
    """Goes down to a random place and changes what is there."""
    inner = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    if not inner or data.draw(st.integers(0, 5)) == 0:
        new = data.draw(st.sampled_from(VALUES))
        return [value] * 3 if data.draw(st.integers(0, 9)) == 0 else copy.deepcopy(new)
    key = data.draw(st.sampled_from(inner[:40]))  # of a vocabulary, too
    what = data.draw(st.sampled_from(["inside", "inside", "inside", "gone", "moved"]))
    if what == "inside":
        value[key] = _changed(data, value[key])
    elif isinstance(value, dict):
        taken = value.pop(key)
        if what == "moved":
            value[data.draw(st.sampled_from([v for v in VALUES if isinstance(v, str)]))] = taken
    elif what == "gone":
        del value[key]
    else:
        value.insert(0, value[key])
    return value

"""PEFT's files of an adapter, changed at random."""

import json
import struct

import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from mutations import accepted, damaged_bytes, damaged_json, fuzz

from gpt2_jax import adapter_files, lora
from gpt2_jax.model import GPT2
from gpt2_jax.training.finetune_options import LoraConfig

CONFIG, WEIGHTS = adapter_files.CONFIG_FILE, adapter_files.WEIGHTS_FILE


@pytest.fixture(scope="module")
def base(small):
    return jax.jit(GPT2, static_argnums=0)(small, jax.random.key(0))


@pytest.fixture(scope="module")
def good(base, tmp_path_factory):
    """{name: bytes} of an adapter with modules that were trained whole."""
    options = LoraConfig(rank=1, also_train="wte|ln_f")
    folder = tmp_path_factory.mktemp("adapter")
    adapter_files.save(lora.attach(base, options, jax.random.key(0)), options, folder)
    return {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


def read(scratch, base, files):
    for name, content in files.items():
        (scratch / name).write_bytes(content)
    model, message = accepted(lambda: adapter_files.load(scratch, base), scratch)
    for leaf in jax.tree.leaves(model):
        assert np.isfinite(np.asarray(leaf)).all()
    return message


@fuzz(15)
def test_other_options(scratch, base, good, data):
    read(scratch, base, good | {CONFIG: damaged_json(data, good[CONFIG])})
    read(scratch, base, good | {CONFIG: damaged_bytes(data, good[CONFIG])})


@fuzz(15)
def test_a_damaged_header(scratch, base, good, data):
    content = good[WEIGHTS]
    length = int.from_bytes(content[:8], "little")
    header = damaged_json(data, content[8 : 8 + length])
    read(scratch, base, good | {WEIGHTS: struct.pack("<Q", len(header)) + header + content[8 + length :]})


@fuzz(15)
def test_damaged_bytes(scratch, base, good, data):
    read(scratch, base, good | {WEIGHTS: damaged_bytes(data, good[WEIGHTS])})


@fuzz(10)
def test_a_rank_that_the_tensors_have_not(scratch, base, good, data):
    rank = data.draw(st.integers(2, 2**63))
    assert "r and the model ask for" in read(
        scratch, base, good | {CONFIG: json.dumps(json.loads(good[CONFIG]) | {"r": rank}).encode()}
    )

"""Small files that claim to be large, and large ones that hold nothing, cost no memory and no time."""

import json
import os
import shutil
import struct
import subprocess
import sys

import msgpack
import pytest

READ = """
import json, resource, sys, time
from pathlib import Path

from gpt2_jax import InputError, tokenizer_files, weights
from gpt2_jax.analysis import curves
from gpt2_jax.data.manifest import unfinished
from gpt2_jax.data.prepared import load_prepared
from gpt2_jax.pretrained import load_config
from gpt2_jax.training import seal

good, folder = Path(sys.argv[1]), Path(sys.argv[2])
config = load_config(good)
readers = {
    "weights": lambda path: weights.load(weights.find(path), config),
    "config": lambda path: weights.load(weights.find(good), load_config(path)),
    "tokenizer": tokenizer_files.load,
    "tokens": load_prepared,
    "record": lambda path: unfinished(path, None, None),
    "seal": lambda path: (_ for _ in ()).throw(InputError(seal.damage(path, ["model"]))),
    "metrics": lambda path: curves.perplexity_curve(path / "metrics.jsonl", path / "x.svg"),
}
readers["config"](good)
curves.perplexity_curve(good / "metrics.jsonl", good / "x.svg")
size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 300_000_000, resource.RLIM_INFINITY))
for path in sorted(folder.iterdir()):
    began = time.monotonic()
    try:
        readers[path.name.split("-")[0]](path)
        said = ""
    except InputError as error:
        said = str(error)
    print(json.dumps([path.name, said, time.monotonic() - began]), flush=True)
"""
GB = 2**30


def safetensors(header, length=None):
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", length or len(encoded)) + encoded


def array(shape, size, kind=0xC9):
    """The head of a msgpack array of so many bytes, without them."""
    head = b"\x93" + msgpack.packb(shape) + msgpack.packb("float32") + b"\xc6" + struct.pack(">I", size)
    return b"\x81\xa3wte" + bytes([kind]) + struct.pack(">I", len(head) + size) + b"\x01" + head


TENSOR = {"dtype": "F32", "shape": [GB // 4], "data_offsets": [0, GB]}
CLAIMS = {
    "weights-header": ("model.safetensors", safetensors({}, GB)),
    "weights-tensor": ("model.safetensors", safetensors({"wte.weight": TENSOR})),
    "weights-empty-tensors": (
        "model.safetensors",
        safetensors({"wte.weight": TENSOR | {"shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}}),
    ),
    "weights-array": ("flax_model.msgpack", array([GB // 4], GB)),
    "weights-key": ("flax_model.msgpack", b"\x81\xdb" + struct.pack(">I", GB)),
    "weights-map": ("flax_model.msgpack", b"\xdf\xff\xff\xff\xff"),
    "weights-shape": ("flax_model.msgpack", b"\x81\xa1x\xc7\x05\x01\xdd\xff\xff\xff\xff"),
    "config-layers": ("config.json", b'{"n_layer": 2147483647}'),
    "config-width": ("config.json", b'{"n_embd": 2147483647, "n_head": 1, "n_layer": 1}'),
    "config-vocabulary": ("config.json", b'{"vocab_size": 2147483647, "n_layer": 1}'),
    "config-depth": ("config.json", b'{"a":' * 1000 + b"1" + b"}" * 1000),
    "seal-metadata": ("_CHECKPOINT_METADATA", b"[" * 1_000_000),
}
LARGE = {
    "weights-sparse-header": ("model.safetensors", struct.pack("<Q", 2 * GB) + b"{"),
    "weights-sparse-key": ("flax_model.msgpack", b"\x81\xdb" + struct.pack(">I", GB)),
    "weights-sparse-index": ("model.safetensors.index.json", b"{"),
    "config-sparse": ("config.json", b"{"),
    "tokenizer-sparse": ("tokenizer.json", b"{"),
    "tokens-sparse": ("manifest.json", b"{"),
    "seal-sparse": ("_CHECKPOINT_METADATA", b"{"),
}


@pytest.fixture
def folder(saved, prepared, tmp_path):
    for group, size in ((CLAIMS, 0), (LARGE, 3 * GB)):
        for name, (file, content) in group.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / file).write_bytes(content)
            if size:
                os.truncate(tmp_path / name / file, size)  # takes no room on the disk
    tokenizer = json.loads((saved["flax"] / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["a"] = 2**32 - 2
    (tmp_path / "tokenizer-id").mkdir()
    (tmp_path / "tokenizer-id" / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer-two").mkdir()
    (tmp_path / "tokenizer-two" / "vocab.json").write_text('{"a": 0, "b": 4294967294}')
    (tmp_path / "tokenizer-two" / "merges.txt").write_text("")
    for name, change in (("tokens-shard", 2**47), ("tokens-word", 2**62)):
        shutil.copytree(prepared[1], tmp_path / name)
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        split = manifest["splits"]["train"]
        split["tokens"] += change - split["shards"][0]["tokens"]
        split["shards"][0]["tokens"] = change
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "metrics-line").mkdir()
    (tmp_path / "metrics-line" / "metrics.jsonl").touch()
    os.truncate(tmp_path / "metrics-line" / "metrics.jsonl", 200_000_000)
    return tmp_path


def test_what_files_claim_takes_no_memory(folder, saved, tmp_path_factory):
    good = tmp_path_factory.mktemp("good") / "model"
    shutil.copytree(saved["safetensors"], good)
    (good / "metrics.jsonl").write_text('{"step": 1, "train_loss": 1.0}\n')
    command = [sys.executable, "-c", READ, str(good), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = list(map(json.loads, done.stdout.splitlines()))
    assert [name for name, *_ in lines] == sorted(path.name for path in folder.iterdir())
    for name, said, seconds in lines:
        assert (said != "") == (name != "metrics-line"), name
        assert seconds < 5, (name, seconds)

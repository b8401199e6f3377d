"""The process of a compilation: what it is given, and what is said when it ends badly."""

import json

import pytest

from gpt2_jax import InputError
from gpt2_jax.config import Config
from gpt2_jax.topology import chips, process

CONFIG = Config.from_dict({})


def interpreter(tmp_path, *, installed=True, script):
    """A program in place of Python that has or lacks the compiler, and does `script` when it should compile."""
    file = tmp_path / "python"
    has = "exit 0" if installed else "exit 1"
    file.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then {has}; fi\n{script}\n')
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e-8", r"the TPU's compiler \(libtpu\) is not installed in .*python; pip install 'gpt2_jax\[aot\]'"),
        ("h100-8", r"JAX's CUDA plugin is not installed in .*python; pip install 'gpt2_jax\[aot-cuda\]'"),
    ],
)
def test_a_compiler_that_is_not_installed(tmp_path, name, message):
    python = interpreter(tmp_path, installed=False, script="")
    with pytest.raises(InputError, match=message):
        process.compile_elsewhere(chips.find(name), CONFIG, "train", python=python)


def test_an_interpreter_that_is_not_there():
    with pytest.raises(InputError, match="there is no interpreter nowhere/python; --python"):
        process.compile_elsewhere(chips.find("v5e-8"), CONFIG, "train", python="nowhere/python")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo 'F1124 offload.cc:316] Check failed: 1 < core_count() (1 vs. 1)' >&2; echo stack >&2; kill -ABRT $$",
            r"the compiler ended its process \(SIGABRT\), which is a fault of its own: F1124 offload.cc:316\] Check",
        ),
        ("echo Traceback >&2; echo 'KeyError: 1' >&2; exit 1", "the compilation failed: KeyError: 1"),
        ("""echo '{"error": "the mesh"}' >"$3" """, "^the mesh$"),
    ],
)
def test_a_compilation_that_ends_badly_is_one_line(tmp_path, script, message):
    python = interpreter(tmp_path, script=script)
    with pytest.raises(InputError, match=message) as raised:
        process.compile_elsewhere(chips.find("v5e-8"), CONFIG, "train", python=python)
    assert "\n" not in str(raised.value)


def test_what_goes_in_and_out(tmp_path):
    warns = 'echo "W1 [SPMD] Involuntary full rematerialization. The" >"$TPU_LOG_DIR/tpu.log.WARNING.1"'
    python = interpreter(tmp_path, script=f'cat >"{tmp_path}/request"; {warns}; echo \'{{"parameters": 1}}\' >"$3"')
    result = process.compile_elsewhere(chips.find("v5e-8"), CONFIG, "train", python=python)
    assert result == {"parameters": 1, "whole_copies": 1}
    request = json.loads((tmp_path / "request").read_text())
    assert request["topology"] == "v5e-8" and Config.from_dict(request["config"]) == CONFIG


def test_the_environment(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    tpu = process.environment(chips.find("v5e-8"), full=False)
    assert "XLA_FLAGS" not in tpu and tpu["JAX_PLATFORMS"] == "cpu" and tpu["JAX_OPTIMIZATION_LEVEL"] == "O0"
    cuda = process.environment(chips.find("h100-8"), full=True)
    assert cuda["XLA_FLAGS"] == "--xla_gpu_autotune_level=0" and cuda["JAX_OPTIMIZATION_LEVEL"] == "UNKNOWN"
    assert str(process.ROOT) in tpu["PYTHONPATH"]


def test_the_vocabulary_of_a_tokenizer_that_is_not_made():
    vocabulary = lambda **data: process.config_of({"model": {"vocab_size": 0}, "data": data}).model.vocab_size
    assert vocabulary(tokenizer="bpe", vocab_size=5000) == 5000
    assert vocabulary(tokenizer="openai-community/gpt2") == 50257

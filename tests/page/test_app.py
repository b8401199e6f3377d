"""scripts/app.py as a user runs it."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import jax
import pytest

import gpt2_jax
from gpt2_jax import GPT2, GPT2Config, InputError, LanguageModel
from gpt2_jax.app import serve
from gpt2_jax.tokenizer_training import train_characters

ENVIRONMENT = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def killed(process):
    """A process that does not outlive its test."""
    try:
        yield
    finally:
        process.kill()


@pytest.fixture
def script(pytestconfig):
    return [sys.executable, str(pytestconfig.rootpath / "scripts/app.py")]


def test_the_page_of_a_model_is_served_until_it_is_interrupted(script, tmp_path):
    tokenizer = train_characters(["ab "])
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=8, n_embd=8, n_layer=1, n_head=1)
    gpt2_jax.save(LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer), tmp_path / "m")
    command = [*script, f"--model={tmp_path / 'm'}", "--port=0", "--rows=1", "--password=ada:secret", "--api"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=ENVIRONMENT) as process, killed(process):
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines[0] == "compiling for m ...\n", process.stderr.read()
        address = re.fullmatch(r"m at (http://127\.0\.0\.1:\d+), for programs at \1/v1\n", lines[1])[1]
        with httpx.Client(base_url=address, auth=("ada", "secret"), timeout=30) as client:
            assert "Watch a GPT-2 write" in client.get("/").text
            assert str(tmp_path) not in client.get("/").text
            key = {"authorization": "Bearer secret"}
            assert httpx.get(f"{address}/v1/models", headers=key).json()["data"][0]["id"] == "m"
            assert httpx.get(f"{address}/v1/models").status_code == 401
            with client.stream("GET", "/gradio_api/heartbeat/abc") as open_page:
                next(open_page.iter_lines())
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in errors


def test_what_is_wrong_is_told(script):
    result = subprocess.run([*script, "--model=/nowhere/at/all"], capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 2 and result.stderr.startswith("error: ") and "nowhere" in result.stderr


@pytest.mark.parametrize("password", ["ada", "ada:", ":secret"])
def test_a_password_has_a_name_and_a_secret(password):
    with pytest.raises(InputError, match=r"the password must be NAME:SECRET, such as ada:a-long-secret"):
        serve(["x"], password=password)


def test_a_port_in_use_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"host '127.0.0.1' and port {port} cannot be listened at"):
            serve(["x"], port=port)

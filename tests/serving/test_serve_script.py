import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

import gpt2_jax
from gpt2_jax import InputError
from gpt2_jax.serving.server import listening


@contextlib.contextmanager
def script(root, *options):
    command = [sys.executable, "scripts/serve.py", "--port=0", "--nowarm", *options]
    environment = os.environ | {"PYTHONPATH": str(root), "GPT2_JAX_API_KEY": "sesame"}
    process = subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_the_script_serves_until_a_signal(lm, tmp_path, pytestconfig, number):
    gpt2_jax.save(lm, tmp_path / "small")
    with script(pytestconfig.rootpath, f"--model={tmp_path / 'small'}") as process:
        line = process.stdout.readline()
        assert line.startswith("small at http://127.0.0.1:"), process.stderr.read()
        body = {"model": "small", "prompt": "the ", "max_tokens": 150, "stream": True, "logit_bias": {"269": -100}}
        request = urllib.request.Request(
            f"{line.split()[-1]}/completions", json.dumps(body).encode(), {"Authorization": "Bearer sesame"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.loads(answer.readline().removeprefix(b"data: "))["choices"][0]["text"]
            process.send_signal(number)
            rest = answer.read().decode()  # what is under way may come to its end
        assert rest.endswith("data: [DONE]\n\n")
        assert process.wait(30) == 0 and process.stderr.read() == ""


def test_what_cannot_be_served_is_an_error(pytestconfig):
    with script(pytestconfig.rootpath, "--model=nothing/there/at/all") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and errors.startswith("error: ") and "nothing/there/at/all" in errors


def test_an_address_in_use_is_an_error():
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        words = rf"host '127\.0\.0\.1' and port {port} cannot be listened at \(Address already in use\); give others"
        with pytest.raises(InputError, match=words), listening("127.0.0.1", port):
            pass

"""A page over tiny models, served in a thread, and a browser to look at it."""

import contextlib
import shutil
import threading
import time

import jax
import pytest
import uvicorn

from gpt2_jax import GPT2, GPT2Config, LanguageModel
from gpt2_jax.app import make_app
from gpt2_jax.serving.models import Models
from gpt2_jax.tokenizer import control_code, train_bpe

TEXT = "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(i)\nOnce upon a time there lived a fox.\n"
CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def speaking(seed: int) -> LanguageModel:
    """Models of one shape share their programs."""
    tokenizer = train_bpe([TEXT], 300).with_special_tokens([control_code(name) for name in ("verse", "tales")])
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(seed)), tokenizer)


@pytest.fixture(scope="session")
def lms():
    return {"first": speaking(0), "second": speaking(1)}


@pytest.fixture(scope="session")
def models(lms):
    with Models(lms, rows=4) as models:
        models.warm()
        yield models


@contextlib.contextmanager
def _served(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def served():
    """A context that gives the address of an application while it is served."""
    return _served


@pytest.fixture(scope="session")
def address(models):
    with _served(make_app(models)) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()

"""A page over tiny models, served in a thread, and a browser to look at it."""

import contextlib
import threading
import time

import jax
import pytest
import uvicorn

from gpt2_jax import GPT2, GPT2Config, LanguageModel
from gpt2_jax.app import make_app
from gpt2_jax.image_language_model import ImageLanguageModel
from gpt2_jax.image_options import ImageConfig
from gpt2_jax.multimodal import completion
from gpt2_jax.serving.models import Models
from gpt2_jax.serving.stream import Cancelled
from gpt2_jax.tokenizer import control_code
from gpt2_jax.tokenizer_training import train_bpe, train_characters

TEXT = "def add(a, b):\n    return a + b\n\nfor i in range(10):\n    print(i)\nOnce upon a time there lived a fox.\n"


def speaking(seed: int) -> LanguageModel:
    """Models of one shape share their programs."""
    tokenizer = train_bpe([TEXT], 300).with_special_tokens([control_code(name) for name in ("verse", "tales")])
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(seed)), tokenizer)


def seeing() -> ImageLanguageModel:
    config = GPT2Config(
        vocab_size=28, n_positions=24, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    image = ImageConfig(
        source="digits", size=8, channels=1, patch_size=4, n_embd=16, n_layer=1, n_head=2, prefix_length=3
    )
    make = jax.jit(lambda key: completion(image)(GPT2(config, key), key))
    return ImageLanguageModel(make(jax.random.key(0)), train_characters(["a handwritten three five xyz jklmbcqu"]))


@pytest.fixture(scope="session")
def lms():
    return {"first": speaking(0), "second": speaking(1), "pictures": seeing()}


@pytest.fixture(scope="session")
def models(lms):
    with Models(lms, rows=2) as models:
        models["first"].warm()  # the second has its shapes, and the third captions alone
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


class Endless:
    """Stands for a batcher whose texts have no end."""

    def __init__(self):
        self.started, self.cancelled = threading.Event(), threading.Event()

    def submit(self, prompt, **options):
        self.started.set()
        return self

    def cancel(self):
        self.cancelled.set()

    def __iter__(self):
        while not self.cancelled.is_set():
            yield "word "
            time.sleep(0.01)

    def result(self):
        raise Cancelled("the text was cancelled")


@pytest.fixture
def endless(models, monkeypatch):
    """What the first model writes is without end."""
    endless = Endless()
    monkeypatch.setattr(models["first"], "submit", endless.submit)
    return endless

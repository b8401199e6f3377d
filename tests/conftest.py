"""Eight simulated devices for every test, and what several test files share."""

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Tests spend their time compiling: the lowest level halves it and changes nothing else.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Several processes at once would read and write the user's cache of compiled programs, which nothing locks. This one
# has a cache of its own, below, for runs that compile what a run before them did.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

import jax
import numpy as np
import pytest

import gpt2_jax
from gpt2_jax import LanguageModel
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_bpe

jax.config.update("jax_platforms", "cpu")
_COMPILED = tempfile.TemporaryDirectory(prefix="gpt2_jax_tests_")
jax.config.update("jax_enable_compilation_cache", True)
jax.config.update("jax_compilation_cache_dir", _COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sizes", action="store_true", help="compare the four published sizes with FlaxGPT2, too")


# A minute or more of one worker each: none is to begin when the other worker has nothing left. Those that start several
# processes come beside those that do not.
LONG = (
    *("test_stalls.py", "test_flaxgpt2.py", "test_kills.py", "test_streamed_runs.py", "test_meshes.py"),
    *("test_scripts.py", "test_guard.py", "test_browser.py", "test_launch.py", "test_tutorial.py"),
    *("test_processes.py", "test_optimizers.py", "test_long_runs.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


MAPPINGS = 20_000  # of memory, of the 65,530 that Linux allows a process


@pytest.fixture(scope="module", autouse=True)
def _few_programs() -> Iterator[None]:
    """Frees compiled programs between modules: each takes several mappings, and XLA crashes when there are no more."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def browser():
    """Chromium without a screen, which asks nobody for anything by itself."""
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync"
    )
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags.split())
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def tiny() -> GPT2Config:
    """Three layers and an odd vocabulary, without dropout; initial weights large enough that logits differ."""
    return GPT2Config(
        vocab_size=101, n_positions=32, n_embd=32, n_layer=3, n_head=4, initializer_range=0.2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_model(tiny: GPT2Config) -> GPT2:
    return jax.jit(GPT2, static_argnums=0)(tiny, jax.random.key(0))


@pytest.fixture
def tokens(tiny: GPT2Config) -> np.ndarray:
    """int32 [2, 16]."""
    return np.random.default_rng(0).integers(0, tiny.vocab_size, (2, 16), np.int32)


# model_folders.py imports Orbax, which takes seconds, and most tests do without.
@pytest.fixture(scope="session")
def small_lm() -> LanguageModel:
    """One whose vocabulary is larger than its tokenizer."""
    from model_folders import TEXT, make_lm

    return make_lm(train_bpe([TEXT], 270))


@pytest.fixture(scope="session")
def saved_model(small_lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of its files, which stay as they are."""
    return gpt2_jax.save(small_lm, tmp_path_factory.mktemp("saved"))


@pytest.fixture
def saved_copy(saved_model: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    from model_folders import copy

    return copy(saved_model, tmp_path / "model")


@pytest.fixture(scope="session")
def saved_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run with two checkpoints, which stays as it is."""
    from model_folders import make_run

    return make_run(tmp_path_factory.mktemp("run"))

"""Asks FlaxGPT2, in its own environment, once for all tests and workers."""

import dataclasses
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import cases
import filelock
import numpy as np
import pytest

from gpt2_jax import GPT2Config, weights
from gpt2_jax.model import GPT2
from gpt2_jax.pretrained import load_config

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[1] / ".venv-oracle"


@dataclasses.dataclass(frozen=True)
class Oracle:
    """What FlaxGPT2 answered; `folder` has a folder for each model of cases.py."""

    folder: Path

    def answers(self, name: str) -> dict[str, np.ndarray]:
        return dict(np.load(self.folder / name / "answers.npz"))

    def config(self, name: str) -> GPT2Config:
        return load_config(self.folder / name)

    def model(self, name: str, *, stacked: bool = True, shardings=None, **changes: str) -> GPT2:
        config = dataclasses.replace(self.config(name), **changes)
        return weights.load(weights.find(self.folder / name), config, stacked=stacked, shardings=shardings)


@pytest.fixture(scope="session")
def flaxgpt2() -> Callable[..., None]:
    """Runs flaxgpt2.py with its arguments."""
    if not (ENVIRONMENT / "complete").exists():
        pytest.skip("there is no .venv-oracle, which scripts/test.sh makes")

    def run(*arguments: str | Path) -> None:
        one_device = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
        command = [str(part) for part in (ENVIRONMENT / "bin/python", HERE / "flaxgpt2.py", *arguments)]
        done = subprocess.run(command, capture_output=True, text=True, env=one_device)
        assert done.returncode == 0, done.stderr[-3000:]

    return run


@pytest.fixture(scope="session")
def oracle(flaxgpt2: Callable[..., None], tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Oracle:
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "oracle"
    with filelock.FileLock(f"{folder}.lock"):  # the first worker asks, the others wait
        if not (folder / "complete").exists():
            flaxgpt2("answer", folder, *cases.MODELS)
            (folder / "complete").touch()
    return Oracle(folder)

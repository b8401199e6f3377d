"""The interpreter that has the TPU's compiler."""

import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = Path(__file__).parents[2] / ".venv-aot"


@pytest.fixture(scope="session")
def aot_python() -> str:
    """That of .venv-aot, or this one if libtpu is in it."""
    if (ENVIRONMENT / "complete").exists():
        return str(ENVIRONMENT / "bin/python")
    if subprocess.run([sys.executable, "-c", "import libtpu"], capture_output=True).returncode:
        pytest.skip("there is no .venv-aot, which scripts/test.sh makes, and no libtpu here")
    return sys.executable

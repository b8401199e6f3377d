"""Runs that earlier versions left open and go on as they did then: one of each format, see golden/make.py."""

import importlib.util
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

from gpt2_jax.training import loop, seal

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.glob("format-*.tar.xz"))
TOLERANCE = 1e-5  # of losses of 3 nats and logits of 1, between compilers


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make_golden", GOLDEN / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_format_is_there():
    assert [int(re.fullmatch(r"format-(\d+).tar.xz", file.name)[1]) for file in FILES] == list(range(seal.FORMAT + 1))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_run_of_an_earlier_version_goes_on(tmp_path, monkeypatch, make, file, capfd):
    with tarfile.open(file) as tar:
        tar.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    golden, run = json.loads(Path("golden.json").read_text()), Path("run")

    def same(then):
        now = make.measure(run)
        np.testing.assert_allclose(now["losses"], then["losses"], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(now["logits"], then["logits"], rtol=0, atol=TOLERANCE)

    same(golden["at"])
    assert loop.train(make.options(8), run).step == 8
    assert "resumed from step 4 " in capfd.readouterr().out
    assert len(golden["end"]["losses"]) == 8
    same(golden["end"])
    assert not Path("run/damaged").exists()

"""scripts/steer.py as a user runs it."""

import importlib.util
import subprocess
import sys

import pytest

from gpt2_jax import InputError


@pytest.fixture
def script(pytestconfig):
    return pytestconfig.rootpath / "scripts" / "steer.py"


def test_a_judge_is_needed(script):
    command = [sys.executable, str(script), "--base=nowhere"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.strip() == "error: 0 judges are given; give --judge, --references or --domain_models"


def test_kinds_and_numbers_of_the_command_line(script):
    spec = importlib.util.spec_from_file_location("steer", script)
    steer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(steer)
    assert steer.by_kind("references", "verse: a.jsonl; tales: b/c.txt") == {"verse": "a.jsonl", "tales": "b/c.txt"}
    for text in ("verse", "verse: a; verse: b", "a: ; b: c"):
        with pytest.raises(InputError, match=r'references is .*; it must be of the form "kind: ...; kind: ...", each'):
            steer.by_kind("references", text)
    assert steer.numbers("alphas", ["0", "1.5"]) == [0.0, 1.5]
    with pytest.raises(InputError, match="alphas is 1,x; it must be numbers with commas"):
        steer.numbers("alphas", ["1", "x"])

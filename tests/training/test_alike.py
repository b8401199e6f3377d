"""Processes that would not do the same are refused by all of them. As a script it is one of several processes."""

import json
import shutil
import sys
import types
from pathlib import Path

import pytest
from processes import join, run_together

import gpt2_jax
from gpt2_jax import Config, InputError
from gpt2_jax.training import alike

FILES = {"source": "files"}


def config(**groups) -> Config:
    return Config.from_dict({"data": FILES | {"paths": "a.txt"}} | groups)


def one_process(address: str, count: str, index: str, folder: str) -> None:
    """What each of two processes does: process 1 is another one each time."""
    join(address, count, index)
    other, found = index == "1", []
    copy = Path(folder) / f"copy-{index}"
    shutil.copytree(Path(gpt2_jax.__file__).parent, copy)
    (copy / "training" / "step.py").write_text("changed = True")
    own = {
        "data": FILES | {"paths": f"{index}.txt", "workers": int(index)},
        "distributed": {"coordinator": f"host{index}:1", "num_processes": 2, "process_id": int(index)},
    }
    for groups in ({}, own, {"optimizer": {"learning_rate": 0.5}}, {"training": {"seed": 7}}, "code", {}):
        there = types.SimpleNamespace(__file__=str(copy / "__init__.py"))
        alike.gpt2_jax = there if groups == "code" and other else gpt2_jax
        try:
            alike.check_alike(config(**groups) if groups != "code" and (other or groups is own) else config())
            found.append("")
        except InputError as error:
            found.append(str(error))
    (Path(folder) / f"{index}.json").write_text(json.dumps(found))


def test_both_of_two_processes_refuse(tmp_path):
    run_together(__file__, 2, tmp_path)
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert first == second
    same, own, rate, seed, code, again = first
    assert same == own == again == ""
    advice = "start all processes with the same command, code and environment on all hosts"
    assert rate == (f"config.optimizer.learning_rate differs between process 0 (0.0006) and process 1 (0.5); {advice}")
    assert seed == f"config.training.seed differs between process 0 (0) and process 1 (7); {advice}"
    assert code.startswith("gpt2_jax/training/step.py differs between process 0 (") and code.endswith(advice)
    assert code.count("differs") == 1


def test_one_process_asks_nobody(monkeypatch):
    monkeypatch.setattr(alike, "description", lambda config: pytest.fail("it has nothing to compare"))
    alike.check_alike(config())


def test_what_is_compared():
    found = alike.description(config())
    assert found["config.model.n_layer"] == "12" and "config.distributed.process_id" not in found
    assert "gpt2_jax/training/alike.py" in found and "gpt2_jax/data/sources.py" in found
    assert found["Python"] == f"{sys.version_info[0]}.{sys.version_info[1]}" and found["orbax-checkpoint"] != "none"


def test_many_processes_make_one_short_message():
    a, b = (
        {"jax": "1", "gone": "x", **dict.fromkeys("cdefg", "1")},
        {"jax": "2", "new": "y", **dict.fromkeys("cdefg", "2")},
    )
    assert alike.differences(a, a) == [] and ["gone", "x", "none"] in alike.differences(a, b)
    assert ["new", "none", "y"] in alike.differences(a, b)
    assert alike.refusal({3: [["jax", "1", "2"]], 5: [["jax", "1", "2"], ["flax", "1", "3"]]}) == (
        "jax differs between process 0 (1) and processes 3, 5 (2); flax differs between process 0 (1) and process 5 (3)"
    )
    text = alike.refusal({i: alike.differences(a, b) for i in range(1, 20)})
    assert text.startswith("jax differs between process 0 (1) and processes 1, 2, 3, 4, 5, 6, 7, 8, ... (2); ")
    assert text.endswith("; and 4 more")


if __name__ == "__main__":
    one_process(*sys.argv[1:])

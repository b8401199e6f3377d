"""scripts/benchmark.py on a model small enough to test."""

import json
import os
import subprocess
import sys

SMALL = """
import sys
import gpt2_jax
sys.path.insert(0, "scripts")
import benchmark
benchmark.GPT2Config = lambda **_: gpt2_jax.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=64)
benchmark.app.run(benchmark.main)
"""


def run(root, *options):
    command = [sys.executable, "-c", SMALL, "--repetitions=1", "--seconds=1", *options]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def test_each_workload_is_one_line(pytestconfig):
    result = run(pytestconfig.rootpath, "--workloads=gen_b1_greedy,first_token_warm")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(record["workload"], record["unit"]) for record in records] == [
        ("gen_b1_greedy", "tokens/s"), ("first_token_warm", "s")
    ], result.stderr  # fmt: skip
    assert all(record["lo"] <= record["value"] <= record["hi"] and record["n"] >= 1 for record in records)


def test_what_names_no_workload_is_refused(pytestconfig):
    result = run(pytestconfig.rootpath, "--workloads=train")
    assert result.returncode != 0
    assert "no workload begins with 'train'; there are gen_b1_greedy" in result.stderr

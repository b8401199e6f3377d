"""The benchmarks, on a model and a corpus small enough to test."""

import json
import os
import subprocess
import sys

from gpt2_jax.tokenizer_training import train_bpe

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
    result = run(pytestconfig.rootpath, "--workloads=gen_b1_greedy,first_token_warm,train_fp32_b4x256,eval_b1")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(record["workload"], record["unit"]) for record in records] == [
        ("train_fp32_b4x256", "tokens/s"), ("eval_b1x1024", "tokens/s"), ("gen_b1_greedy", "tokens/s"),
        ("first_token_warm", "s"),
    ], result.stderr  # fmt: skip
    assert all(record["lo"] <= record["value"] <= record["hi"] and record["n"] >= 1 for record in records)


def test_what_names_no_workload_is_refused(pytestconfig):
    result = run(pytestconfig.rootpath, "--workloads=speed")
    assert result.returncode != 0
    assert "no workload begins with 'speed'; there are first_step_12_layers" in result.stderr


def test_data_is_measured(pytestconfig, tmp_path):
    (tmp_path / "tale.txt").write_text("Once upon a time there was a story.\n" * 3000)
    train_bpe(["Once upon a time there was a story."], 270).save(tmp_path / "tokenizer.json")
    command = [
        sys.executable, "scripts/benchmark_data.py", f"--paths={tmp_path / 'tale.txt'}", "--rounds=1", "--batches=2",
        f"--tokenizer={tmp_path / 'tokenizer.json'}", "--tokens=100000",
    ]  # fmt: skip
    run = lambda *more: subprocess.run([*command, *more], cwd=pytestconfig.rootpath, capture_output=True, text=True)
    result = run("--measure=prepared,encode,stream")
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert {record["measurement"].split("/")[0] for record in records} == {"prepared", "encode", "stream"}, (
        result.stderr
    )
    resumed = [record for record in records if "identical" in record]
    assert len(resumed) == 3 and all(record["identical"] == record["of"] == 2 for record in resumed)
    assert "--measure has 'speed'; there are encode, memory, prepared, stream" in run("--measure=speed").stderr

"""scripts/evaluate.py as a user runs it."""

import json
import os
import subprocess
import sys

import pytest

import gpt2_jax
from gpt2_jax.evaluation import report, tasks

ENVIRONMENT = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


@pytest.fixture
def evaluate(pytestconfig):
    def run(*options):
        command = [sys.executable, str(pytestconfig.rootpath / "scripts/evaluate.py"), *options]
        return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)

    return run


def test_two_tasks_of_a_model_and_the_table(evaluate, lm, tmp_path, capsys):
    folder = gpt2_jax.save(lm, tmp_path / "model")
    data, output = tmp_path / "data.txt", tmp_path / "reports"
    data.write_text("the fox jumps over the dog\nit rains in spain again\n")
    given = (f"--model={folder}", f"--data={data}", f"--output={output}")
    result = evaluate(*given, "--task=lambada_openai,text8", "--batch_size=2")
    assert result.returncode == 0, result.stderr
    assert "lambada_openai: the last word of a passage" in result.stdout and "published: gpt2 32.56 %" in result.stdout
    assert "bits_per_character" in result.stdout and "published: gpt2 1.17" in result.stdout
    assert {file.suffix for file in output.iterdir()} == {".json", ".md"} and len(list(output.iterdir())) == 4
    (file,) = output.glob("text8*.json")
    figures = json.loads(file.read_text())["figures"]
    outcome = tasks.find("text8").run(lm, str(data))
    assert figures["bits_per_byte"]["value"] == pytest.approx(outcome.figures["bits_per_byte"].value, rel=1e-5)

    result = evaluate("--task=table", f"--output={output}")
    assert result.returncode == 0 and result.stdout.splitlines() == report.table(report.read(output))


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--task=wikitxt2", "--model=none"), 2, "error: there is no task 'wikitxt2'; did you mean 'wikitext2'?"),
        (("--task=humaneval", "--model=none", "--k=x"), 2, "error: k is x; it must be whole numbers with commas"),
        (
            ("--task=ptb",),
            2,
            "error: there is no --model; give a training run, a folder or file of weights, or a hub id",
        ),
        (
            ("--task=ptb", "--modle=none"),
            1,
            "FATAL Flags parsing error: Unknown command line flag 'modle'. Did you mean",
        ),
    ],
)
def test_what_cannot_be_run(evaluate, options, code, message):
    result = evaluate(*options)
    assert result.returncode == code and result.stderr.startswith(message)

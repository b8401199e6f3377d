"""scripts/sweep.py as a user runs it."""

import os
import subprocess
import sys

import jax
import pytest

import gpt2_jax
from gpt2_jax import GPT2, GPT2Config, LanguageModel
from gpt2_jax.tokenizer_training import train_characters

ENVIRONMENT = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


@pytest.fixture
def sweep(pytestconfig, tmp_path):
    (tmp_path / "prompts.txt").write_text("ab\nb a\n")

    def run(*options):
        command = [sys.executable, str(pytestconfig.rootpath / "scripts/sweep.py"), f"--output={tmp_path / 'out'}"]
        given = (f"--model={tmp_path / 'model'}", f"--prompts={tmp_path / 'prompts.txt'}", *options)
        return subprocess.run([*command, *given], capture_output=True, text=True, env=ENVIRONMENT)

    return run


def test_a_sweep_of_two_settings_ends_with_its_table(sweep, tmp_path):
    tokenizer = train_characters(["ab "])
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    lm = LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)
    gpt2_jax.save(lm, tmp_path / "model")
    some = ("--grid", "--temperature=0.5,1", "--top_k=0", "--top_p=1", "--repetition_penalty=1", "--max_new_tokens=9")
    result = sweep(*some, "--samples=2", "--batch_size=4")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("1/2 temperature=0.5 max_new_tokens=9: perplexity ")
    assert (tmp_path / "out" / "table.md").read_text() in result.stdout


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        ("--top_k=5,many", 2, "error: top_k is 5,many; it must be whole numbers with commas"),
        ("--top_p=0.9,x", 2, "error: top_p is 0.9,x; it must be numbers with commas"),
    ],
)
def test_what_is_no_list_of_numbers(sweep, option, code, message):
    result = sweep(option)
    assert (result.returncode, result.stderr.strip()) == (code, message)

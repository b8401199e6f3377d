"""scripts/plot.py as a user runs it."""

import json
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
def plot(pytestconfig, tmp_path):
    def run(picture, *options):
        command = [sys.executable, str(pytestconfig.rootpath / "scripts/plot.py"), f"--picture={picture}", *options]
        return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path)

    return run


def test_curves_of_two_runs(plot, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"step": 1, "train_loss": 3.0}) + "\n")
    result = plot("curves", "--workdir=a,b", "--output=out/curves.svg")
    assert (result.returncode, result.stdout.strip()) == (0, "out/curves.svg"), result.stderr
    assert (tmp_path / "out" / "curves.svg").read_bytes().startswith(b"<?xml")


@pytest.fixture
def model(tmp_path):
    """The folder of a small model, "model"."""
    tokenizer = train_characters(["abcdefgh |"])
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    lm = LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)
    gpt2_jax.save(lm, tmp_path / "model")


def test_completions_of_a_small_model(plot, model, tmp_path):
    settings = ("--rows=temperature=0.5,1", "--columns=top_k=2", "--options=max_new_tokens=5", "--seeds=1,2")
    result = plot("completions", "--model=model", "--prompt=ab", "--prompt=b", *settings, "--output=c.md")
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "c.md").read_text()
    assert text.startswith("Every text: max\\_new\\_tokens 5\n\n| ab | top\\_k 2 |\n| --- | --- |\n| temperature 0.5 |")
    assert text.count("(seed 2)") == 4 and "\n| b | top" in text


WRONG = {
    "curves --output=c.png": "there is no --workdir, which --picture=curves needs; --help says more",
    "curves --workdir=a --output=c.jpg": "output is 'c.jpg'; it must be a file with the suffix .png, .svg, .pdf or",
    "completions --output=c.png": "output is 'c.png'; it must be a file with the suffix .md or .html, which decides",
    "completions --output=c.md": "there is no --rows, which --picture=completions needs",
    "completions --output=c.md --rows=top_k=1 --options=top_p=1,0.5":
        "options is 'top_p=1,0.5'; it must be one setting: rows and columns have several",
    "completions --output=c.md --rows=top_k=1 --seeds=1,x": "seeds is 1,x; it must be whole numbers with commas",
    "completions --output=c.md --rows=top_k=1": "there is no --model, which --picture=completions needs",
    "attention --output=a.png --model=m": "there is no --text, which --picture=attention needs",
    "attention --output=a.png --text=a --file=b": "there is --text, and --file besides; give one of them",
    "heads --output=a.png --file=nowhere": "nowhere cannot be read ([Errno 2] No such file",
    "ranks --output=a.md": "output is 'a.md'; it must be a file with the suffix .png, .svg, .pdf or .html",
    "surprisal --output=a.png --text=a": "there is no --model, which --picture=surprisal needs",
    "diversity --output=c.png --sweep=nowhere": "nowhere has no settings/*.json; give the folder that",
    "quality --output=c.png": "there is no --sweep, which --picture=quality needs",
}  # fmt: skip
# One process for all: each start costs seconds.
SEVERAL = """
import runpy, sys
from absl import flags

main = runpy.run_path(sys.argv[1])["main"]
for line in sys.argv[2:]:
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    print(main(flags.FLAGS(["plot.py", *line.split(" ")])))
"""


@pytest.fixture
def plot_several(pytestconfig, tmp_path):
    def run(lines):
        script, given = str(pytestconfig.rootpath / "scripts/plot.py"), [f"--picture={line}" for line in lines]
        command = [sys.executable, "-c", SEVERAL, script, *given]
        return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path)

    return run


def test_attention_and_probabilities_of_a_small_model(plot_several, model, tmp_path):
    (tmp_path / "text.txt").write_text("\ufeffab |ab", encoding="utf-8")
    pictures = {
        "attention": "--layer=0 --head=1", "heads": "--layer=-1", "statistics": "", "ranks": "", "surprisal": "",
        "histogram": "", "probabilities": "",
    }  # fmt: skip
    of = "--model=model --file=text.txt"
    lines = [f"{name} {of} --output={name}.png {options}".strip() for name, options in pictures.items()]
    result = plot_several([*lines, f"probabilities {of} --top_k=2 --output=p.html"])
    assert result.stdout.split()[1::2] == ["0"] * 8, result.stderr
    assert all((tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in pictures)
    page = (tmp_path / "p.html").read_text()
    assert "<h1>What model expected</h1>" in page and page.count('class="row') == 12


def test_what_is_wrong_is_said(plot_several, tmp_path):
    result = plot_several(WRONG)
    assert result.stdout.split() == ["2"] * len(WRONG), result.stderr
    for said, message in zip(result.stderr.splitlines(), WRONG.values()):
        assert said.startswith(f"error: {message}")
    assert not list(tmp_path.iterdir())

"""The README's code runs, and it names every option of generation."""

import ast
import dataclasses
import inspect
import re

import jax
import optax
import pytest

import gpt2_jax
from gpt2_jax import Config, GPT2Config, LanguageModel
from gpt2_jax.config import CheckpointConfig
from gpt2_jax.generation.options import Options
from gpt2_jax.tokenizer_training import train_bpe
from gpt2_jax.training.checkpoint_writer import CheckpointWriter
from gpt2_jax.training.step import init_state


@pytest.fixture(scope="module")
def readme(pytestconfig):
    return (pytestconfig.rootpath / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def quickstart(tmp_path, monkeypatch):
    """The current folder, with an untrained runs/quickstart of the config's context."""
    tokenizer = train_bpe(["def class import for i in range(x):\n\n"], 280)
    model = GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=16, n_layer=1, n_head=2)
    config = Config.from_dict({"model": dataclasses.asdict(model)})
    state = jax.jit(lambda: init_state(config.model, optax.identity(), 0))()
    with CheckpointWriter(tmp_path / "runs" / "quickstart", CheckpointConfig()) as checkpoints:
        checkpoints.save(state, config.to_dict(), tokenizer.to_json(), 1.0)
        checkpoints.wait()
    monkeypatch.chdir(tmp_path)


def test_python_blocks_run_one_after_the_other(readme, quickstart, capsys):
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", readme, re.S)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 7 and names["grown"].config.vocab_size == 283
    assert capsys.readouterr().out.startswith("def")


def table(readme, heading):
    section = readme.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| ")]
    return [row for row in rows if len(row) == 2]


def test_the_table_of_options_is_complete(readme):
    named = {name for _, cell in table(readme, "Generate") for name in re.findall(r"`(\w+)`", cell)}
    assert named == {field.name for field in Options.fields()}


def test_what_replaces_flaxgpt2_exists(readme):
    signatures = {
        "gpt2_jax.load": inspect.signature(gpt2_jax.load),
        "gpt2_jax.save": inspect.signature(gpt2_jax.save),
        "lm.compile": inspect.signature(LanguageModel.compile),
        "lm.generate": inspect.signature(lambda self, prompt, **options: None),
    }
    seen = set()
    for _, here in table(readme, "Coming from FlaxGPT2"):
        for code in re.findall(r"`([^`]+)`", here):
            if "(" not in code:
                continue
            for call in ast.walk(ast.parse(code)):
                name = ast.unparse(call.func) if isinstance(call, ast.Call) else None
                if name not in signatures:
                    continue
                seen.add(name)
                keywords = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
                arguments = call.args if name.startswith("gpt2_jax") else [None, *call.args]
                signatures[name].bind(*arguments, **keywords)
                if name == "lm.generate":
                    Options(**keywords)
    assert seen == signatures.keys()


def test_the_layout_is_the_folders(readme, pytestconfig):
    tree = readme.split("## Where things are")[1].split("```")[1]
    named = set(re.findall(r"\w+\.(?:py|sh)", tree))
    files = [file for folder in ("gpt2_jax", "scripts") for file in (pytestconfig.rootpath / folder).rglob("*.*")]
    there = {file.name for file in files if file.suffix in (".py", ".sh") and "builders" not in file.parts}
    assert named <= there
    minor = {"__init__.py", "errors.py", "compilation_cache.py", "environment.sh", "memory.py"}
    assert there - named == minor


def test_what_a_run_survives_is_tested(readme, pytestconfig):
    section = readme.split("\n## What a run survives\n")[1].split("\n## ")[0]
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", section)
    for file, test in named:
        assert f"\ndef {test}(" in (pytestconfig.rootpath / "tests" / file).read_text(encoding="utf-8"), (file, test)
    assert len(named) > 30


def test_options_of_runs_exist(readme, pytestconfig):
    """Wherever a command names one: here, in the configs, the tutorial."""
    files = [*(pytestconfig.rootpath / "configs").glob("*.py"), pytestconfig.rootpath / "scripts/tutorial.py"]
    texts = [readme, *(file.read_text(encoding="utf-8") for file in files)]
    named = {option for text in texts for option in re.findall(r"--config\.(\w+)\.(\w+)", text)}
    config = gpt2_jax.default_config()
    assert [option for option in named if option[1] not in config.get(option[0], {})] == [] and len(named) > 20


def test_links_and_pictures_are_there(readme, pytestconfig):
    headings = re.findall(r"^#+ (.*)$", readme, re.M)
    anchors = {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = [link for link in re.findall(r'(?:\]\(|src=")([^)"]+)', readme) if not link.startswith("http")]
    assert [link for link in links if link not in anchors and not (pytestconfig.rootpath / link).exists()] == []

"""Nothing that is opened can run code: no pickle, no eval, in what is written here and in what runs."""

import ast
import os
import subprocess
import sys

import pytest

MODULES = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch", "yaml", "code", "imp"}
CONFINED = "gpt2_jax/evaluation/confinement.py"  # runs HumanEval's programs, by --execute alone, where they do no harm
CALLS = {"eval", "exec", "compile", "__import__", "execfile"}


def what_runs_code(tree):
    """Imports and calls in a module that could run what a file holds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] in MODULES:
            yield node.module
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in CALLS:
                yield node.func.id
            for keyword in node.keywords:
                if isinstance(keyword.value, ast.Constant) and keyword.value.value is False:
                    continue  # says no
                if keyword.arg in ("allow_pickle", "trust_remote_code") or (keyword.arg == "shell" and node.keywords):
                    yield keyword.arg


def test_the_source_opens_no_pickle_and_runs_no_text(pytestconfig):
    files = [file for folder in ("gpt2_jax", "scripts") for file in (pytestconfig.rootpath / folder).rglob("*.py")]
    assert len(files) > 80
    found = {file: list(what_runs_code(ast.parse(file.read_text()))) for file in files}
    assert {file: what for file, what in found.items() if what} == {
        pytestconfig.rootpath / CONFINED: ["exec", "compile"]
    }


def test_such_a_source_would_be_found():
    lines = ["import pickle", "from torch import load", "eval(x)", "np.load(f, allow_pickle=True)", "import yaml"]
    assert list(what_runs_code(ast.parse("np.load(f, allow_pickle=False)"))) == []
    assert [list(what_runs_code(ast.parse(line))) for line in lines] == [
        ["pickle"], ["torch"], ["eval"], ["allow_pickle"], ["yaml"],
    ]  # fmt: skip


# Python tells of every global that an unpickler looks up, whoever unpickles, and of every object that numpy would
# unpickle by it. Of what libraries import, the marshalled code of their modules is no file of ours.
RUN = """
import sys
from pathlib import Path

folder = Path(sys.argv[1])
seen = []

def watch(event, arguments):
    if event == "pickle.find_class":
        frame, ours = sys._getframe(), ""
        while frame is not None:
            ours = ours or (frame.f_code.co_filename if "gpt2_jax" in frame.f_code.co_filename else "")
            frame = frame.f_back
        seen.append((ours, arguments))

sys.addaudithook(watch)
import gpt2_jax
from gpt2_jax.config import default_config
from gpt2_jax.training.loop import train

(folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\\n" * 200)
config = default_config()
config.model.update(n_layer=1, n_head=2, n_embd=8, n_positions=16)
config.data.update(source="files", paths=str(folder / "text.txt"), tokenizer="characters", workers=1)
config.training.update(batch_size=2, sample_tokens=0)
config.optimizer.update(warmup_steps=1)
config.evaluation.update(windows=1)
for steps in (2, 3):  # begun, and gone on with
    config.training.steps = steps
    train(config.to_dict(), folder / "run")
lm = gpt2_jax.load(folder / "run")
for format in ("safetensors", "flax"):
    again = gpt2_jax.load(gpt2_jax.save(lm, folder / format, format))
again.generate("the", max_new_tokens=2)
assert not seen, seen
import pickle
pickle.loads(pickle.dumps(Path("x")))
assert seen, "the watch sees nothing"
print("done")
"""


def test_a_run_from_text_to_generation_unpickles_nothing(tmp_path):
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr[-3000:]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "ckpt.pth", "model.ckpt", "model.pkl", "model.npy"])
def test_files_that_are_pickles_are_refused_unopened(name, tmp_path):
    import gpt2_jax

    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/never'\ntR.")
    with pytest.raises(gpt2_jax.InputError, match=r"is not opened|no kind of file that holds weights"):
        gpt2_jax.load(tmp_path / name)

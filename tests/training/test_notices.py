"""Notices of a metadata server, which a local one plays, stop a run as SIGTERM does."""

import http.server
import signal
import threading
import time

import pytest
from short_runs import watch_batches
from test_loop import options

from gpt2_jax.training import loop, notices
from gpt2_jax.training.checkpoint import Checkpoints
from gpt2_jax.training.device_options import DistributedConfig
from gpt2_jax.training.interruption import Stop

GOES = {"preempted": "TRUE", "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}


@pytest.fixture
def metadata(monkeypatch):
    """What the server answers: {key: value}."""
    values = {"preempted": "FALSE", "maintenance-event": "NONE"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            folder, _, key = self.path.rpartition("/")
            there = folder == "/computeMetadata/v1/instance" and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if there else 403)
            self.end_headers()
            self.wfile.write(values[key].encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"localhost:{server.server_port}")
        monkeypatch.setattr(notices, "EVERY", 0.02)
        yield values
        server.shutdown()


def wait_for(stop: Stop, seconds: float = 5.0) -> int | None:
    end = time.monotonic() + seconds
    while stop.signal is None and time.monotonic() < end:
        time.sleep(0.01)
    return stop.signal


def test_a_notice_saves_and_ends_the_run(metadata, tmp_path, monkeypatch, capfd):
    plain, calls = loop.global_batch, iter(range(100))

    def noticing(batch, mesh):
        if next(calls) == 8:
            metadata["preempted"] = "TRUE"
            time.sleep(1.0)
        return plain(batch, mesh)

    watch_batches(monkeypatch, noticing)
    outcome = loop.train(options(tmp_path), tmp_path / "run")
    assert outcome.signal == signal.SIGTERM and 0 < outcome.step < 12
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps[-1] == outcome.step
    said = "stopping after this step and saving; this machine is to be taken away (preempted of its metadata server)\n"
    assert said in capfd.readouterr().out


def test_the_signal_that_follows_a_notice_is_no_second_one(metadata, capfd):
    stop = Stop()
    with notices.watch_notices(DistributedConfig(), stop):
        metadata["preempted"] = "TRUE"
        assert wait_for(stop) == signal.SIGTERM
    stop.ask(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        stop.ask(signal.SIGTERM)
    assert capfd.readouterr().out.count("stopping after this step") == 1


@pytest.mark.parametrize(
    ("mode", "values"),
    [("off", GOES), ("auto", {"preempted": "FALSE", "maintenance-event": "MIGRATE_ON_HOST_MAINTENANCE"})],
)
def test_what_is_no_notice(metadata, mode, values):
    stop = Stop()
    with notices.watch_notices(DistributedConfig(preemption_notice=mode), stop):
        metadata |= values
        assert wait_for(stop, 0.3) is None


def test_a_notice_from_before_the_run_is_ignored(metadata):
    """GPU machines have an hour after it: a run that was started again in spite of it would stop again at once."""
    metadata["maintenance-event"] = GOES["maintenance-event"]
    stop = Stop()
    with notices.watch_notices(DistributedConfig(), stop):
        assert wait_for(stop, 0.3) is None
        metadata["preempted"] = "TRUE"
        assert wait_for(stop) == signal.SIGTERM


def test_a_server_that_does_not_answer_says_nothing(monkeypatch):
    monkeypatch.setenv("GCE_METADATA_HOST", "localhost:1")
    assert notices.on_google() and not notices.noticed("preempted")
    monkeypatch.delenv("GCE_METADATA_HOST")
    monkeypatch.setattr(notices.Path, "read_text", lambda _: "Google Compute Engine\n")
    assert notices.on_google()
    monkeypatch.setattr(notices.Path, "read_text", lambda _: "KVM\n")
    assert not notices.on_google()

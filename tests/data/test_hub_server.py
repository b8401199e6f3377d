"""A dataset of a hub that is served here and fails: read by `datasets` in a process that knows no other hub."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

import pytest

COMMIT = "a" * 40
ROWS = 1200
FILE = "train.jsonl"
BODY = b"".join(b'{"text": "%d %s"}\n' % (i, b"x" * 20_000) for i in range(ROWS))  # several of datasets' 10 MB reads
READ = """
import json, sys, time
sleep = time.sleep
time.sleep = lambda seconds: sleep(min(seconds, 0.01))
from gpt2_jax.config import DataConfig
from gpt2_jax.data import hub
from gpt2_jax.data.sources import open_source
from gpt2_jax.errors import InputError
hub.STALL_SECONDS = 2.0
rows = []
try:
    source = open_source(DataConfig(source="owner/name", tokenizer="x", retries=2))
    for document in source.documents():
        rows.append(int(document.text.split()[0]))
    says = ""
except InputError as error:
    says = str(error)
print(json.dumps([len(rows), rows == list(range(len(rows))), says]))
"""


class Hub(ThreadingHTTPServer):
    """Serves one dataset; `fail(n)` says what to do with the n-th read of its file: "", "refuse", "drop" or "stall"."""

    def __init__(self, fail):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fail, self.reads, self.release = fail, 0, threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = unquote(urlparse(self.path).path)
        file = {"type": "file", "path": FILE, "size": len(BODY), "oid": hashlib.sha1(BODY).hexdigest()}
        about = {"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": FILE}], "private": False, "tags": []}
        if re.fullmatch("/api/datasets/owner/name(/revision/.*)?", path):
            self._reply(200, json.dumps(about).encode())
        elif path == f"/api/datasets/owner/name/tree/{COMMIT}":
            self._reply(200, json.dumps([file]).encode())
        elif path == f"/datasets/owner/name/resolve/{COMMIT}/{FILE}":
            self._file()
        else:
            self._reply(404, b"{}", ("X-Error-Code", "EntryNotFound"))

    do_HEAD = do_GET

    def _file(self):
        first, end = 0, len(BODY)
        if asked := self.headers.get("Range"):
            first, last = (int(value) for value in asked.removeprefix("bytes=").split("-"))
            end = min(end, last + 1)
        how = ""
        if self.command == "GET":
            self.server.reads += 1
            how = self.server.fail(self.server.reads)
        if how == "refuse":
            return self._reply(500, b"{}")
        body = BODY[first:end]
        headers = [
            ("Content-Range", f"bytes {first}-{end - 1}/{len(BODY)}"),
            ("ETag", f'"{hashlib.sha1(BODY).hexdigest()}"'),
        ]
        self._reply(206 if asked else 200, body, *headers, send=len(body) // 2 if how else len(body))
        if how == "stall":
            self.server.release.wait(20)
        self.close_connection = bool(how)

    def _reply(self, code, body, *headers, send=None):
        self.send_response(code)
        for name, value in (("Content-Length", str(len(body))), ("X-Repo-Commit", COMMIT), *headers):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:send])

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # the reader gave up
            self.close_connection = True


def read(endpoint, home):
    """How many rows came, whether each came once and in order, and what the error said."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "PYTHONWARNINGS"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", READ], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def serve(tmp_path):
    hubs = []

    def start(fail):
        hubs.append(Hub(fail))
        threading.Thread(target=hubs[-1].serve_forever, daemon=True).start()
        return hubs[-1], read(f"http://127.0.0.1:{hubs[-1].server_port}", tmp_path)

    yield start
    for hub in hubs:
        hub.release.set()
        hub.shutdown()
        hub.server_close()


def test_a_hub_that_drops_refuses_and_stalls(serve):
    hub, (rows, in_order, says) = serve(lambda n: {2: "drop", 3: "refuse", 5: "stall", 7: "drop"}.get(n, ""))
    assert (rows, in_order, says) == (ROWS, True, "")
    assert hub.reads > 7


def test_a_hub_that_goes_keeps_what_came(serve):
    _, (rows, in_order, says) = serve(lambda n: "drop" if n > 2 else "")
    assert 0 < rows < ROWS and in_order
    assert re.fullmatch(
        rf"owner/name/train/00000-of-00001 failed at row {rows}, 3 times in a row, at last with ConnectionError: .*; "
        r"what was done is kept: run again when the source is back, or give a copy of it \(--config.data.paths\)",
        says,
    )


def test_no_hub_at_all(tmp_path):
    rows, _, says = read("http://127.0.0.1:9", tmp_path)
    assert rows == 0
    assert re.match(r"owner/name, split 'train', cannot be opened \(ConnectionError: Couldn't reach 'owner/name'", says)
    assert says.endswith("give a folder with a copy of it (--config.data.paths), or set HF_HOME to a cache that has it")

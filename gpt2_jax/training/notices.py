"""Notices that Google's cloud is about to take this machine away, which its metadata server gives before any signal.

A spot VM has 30 seconds from its notice, a VM with accelerators 1 to 60 minutes from that of maintenance; SIGTERM comes
when it shuts down. SLURM, Kubernetes and SkyPilot signal the process itself, see interruption.py.
"""

import contextlib
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from absl import logging

from gpt2_jax.training.device_options import DistributedConfig
from gpt2_jax.training.interruption import Stop

HOST = "GCE_METADATA_HOST"  # the variable by which Google's own libraries find another metadata server, too
# Key of the metadata server, and its value when the machine goes. (Live migration takes nothing away.)
NOTICES = {"preempted": "TRUE", "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}
EVERY, TIMEOUT = 5.0, 3.0  # seconds between two questions, and for an answer
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def watch_notices(config: DistributedConfig, stop: Stop) -> Iterator[None]:
    """Stops the run after its step as SIGTERM does, when there is a notice. One from before the run is ignored."""
    if config.preemption_notice == "off" or (config.preemption_notice == "auto" and not on_google()):
        yield
        return
    closed = threading.Event()
    before = {key for key in NOTICES if noticed(key)}

    def watch() -> None:
        while not closed.wait(EVERY):
            for key in NOTICES.keys() - before:
                if stop.signal is None and noticed(key):
                    stop.notice(signal.SIGTERM, f"this machine is to be taken away ({key} of its metadata server)")

    watching = threading.Thread(target=watch, name="notices", daemon=True)
    watching.start()
    try:
        yield
    finally:
        closed.set()
        watching.join(len(NOTICES) * TIMEOUT)


def on_google() -> bool:
    """Whether this is a VM of Google's cloud."""
    if HOST in os.environ:
        return True
    try:
        return Path("/sys/class/dmi/id/product_name").read_text().startswith("Google")
    except OSError:
        return False


def noticed(key: str) -> bool:
    """Whether the metadata server says so now; what does not answer says nothing."""
    url = f"http://{os.environ.get(HOST, 'metadata.google.internal')}/computeMetadata/v1/instance/{key}"
    try:
        with _direct.open(
            urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=TIMEOUT
        ) as answer:
            return answer.read(100).decode().strip() == NOTICES[key]
    except (OSError, ValueError) as error:
        logging.log_every_n_seconds(logging.WARNING, "no notices from %s: %s", 3600, url, error)
        return False

"""Serves an application until it is told to stop."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import uvicorn

from gpt2_jax.errors import InputError
from gpt2_jax.serving.models import Models
from gpt2_jax.serving.openai_api import make_app

GRACE = 5  # seconds that answers under way have to come to their end


def serve(sources: Sequence[str], *, host: str, port: int, api_key: str | None, warm: bool, **options: int) -> None:
    """The endpoint alone, until SIGINT or SIGTERM.

    Args:
      sources: as `Models.load` takes them.
      host, port: to listen at; port 0 is any that is free.
      api_key: that clients must send.
      warm: compile everything before the first request rather than with it.
      **options: those of `Batcher`.

    Raises:
      InputError: nothing to load, or an address that cannot be listened at.
    """
    with listening(host, port) as listener, Models.load(sources, **options) as models:
        if warm:
            models.warm(lambda name: print(f"compiling for {name} ...", flush=True))
        url_host = f"[{host}]" if ":" in host else host
        print(f"{', '.join(models)} at http://{url_host}:{listener.getsockname()[1]}/v1", flush=True)
        run(make_app(models, api_key=api_key), listener)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens there.

    Raises:
      InputError: it cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"host {host!r} and port {port} cannot be listened at ({os.strerror(error.errno)}); give others"
        ) from None
    with listener:
        yield listener


def run(app: Any, listener: socket.socket) -> None:
    """Serves on the socket until SIGINT or SIGTERM; then takes nothing new and gives answers a few seconds to end."""
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE, server_header=False)
    server = uvicorn.Server(config)
    # uvicorn raises the signal again at its end, for those that it found: then nothing more is to be done.
    found = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in found.items():
            signal.signal(number, handler)

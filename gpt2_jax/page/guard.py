"""What stands before the page: a password, no routes but those that are needed, bounds, headers for browsers."""

import asyncio
import base64
import binascii
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LARGEST_BODY = 12 * 2**20  # bytes: an image, as base64, and then some
# Gradio serves files, takes uploads, fetches addresses for others and more; the page needs none of that.
ROUTES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)/?|/(assets|static|svelte)/[\w./-]+"
    r"|/gradio_api/(info|startup-events|queue/(join|data)|cancel|reset|heartbeat/[\w-]+|(run|api)/\w+|call/(v2/)?\w+(/\w+)?)/?"
)
HEADERS = [
    (
        b"content-security-policy",
        # Gradio's page has scripts within it, and makes functions of templates.
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval'; img-src 'self' data: blob:; font-src 'self' data:; "
        b"object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


SLOW = 0.5  # seconds before a wrong password is refused


class Guard:
    """An ASGI application before another.

    Args:
      app: the other.
      besides: the beginnings of further paths that are let through, such as "/v1/"; the password is not theirs.
      largest_body: bytes that a request may bring.
      password: a name and a secret, without which nothing else is answered; programs may send the secret as a key.
    """

    def __init__(
        self,
        app: Callable,
        besides: tuple[str, ...] = (),
        largest_body: int = LARGEST_BODY,
        password: tuple[str, str] | None = None,
    ):
        self.app, self.besides, self.largest_body = app, besides, largest_body
        self._password = password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        path, headers = scope["path"], dict(scope["headers"])
        other = path.startswith(self.besides)
        if self._password and not other and not _knows(headers.get(b"authorization", b""), *self._password):
            await asyncio.sleep(SLOW)
            return await _refuse(send, 401, b"A password is needed.", (b"www-authenticate", b'Basic realm="gpt2_jax"'))
        known = ROUTES.fullmatch(path) and ".." not in path
        if scope["type"] != "http" or not (known or other):
            return await _refuse(send, 404, b"There is nothing here.")
        size = headers.get(b"content-length", b"0")
        if not size.isdigit() or int(size) > self.largest_body:
            return await _refuse(send, 413, b"That is too long: at most %d bytes." % self.largest_body)
        answer = Answer(send)
        try:
            await self.app(scope, self._bounded(receive), answer)
        except asyncio.CancelledError:  # the server stops, and pages that are open still listen
            await answer.end()

    def _bounded(self, receive: Receive) -> Receive:
        """Breaks off a body that comes in pieces and gets too long: its sender is taken for gone."""
        taken = 0

        async def receive_some() -> MutableMapping[str, Any]:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            return message if taken <= self.largest_body else {"type": "http.disconnect"}

        return receive_some


class Answer:
    """Sends an answer, with `HEADERS`."""

    def __init__(self, send: Send):
        self._send, self._open = send, False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        self._open = message["type"] == "http.response.start" or message.get("more_body", False)
        await self._send(message)

    async def end(self) -> None:
        """Ends an answer that has begun."""
        if self._open:
            await self({"type": "http.response.body", "body": b"", "more_body": False})


def _knows(given: bytes, name: str, secret: str) -> bool:
    """Whether the header of a request has the password, as browsers or as programs send it."""
    kind, _, value = given.partition(b" ")
    if kind.lower() == b"basic":
        try:
            value = base64.b64decode(value, validate=True)
        except binascii.Error:
            return False
        return secrets.compare_digest(value, f"{name}:{secret}".encode())
    return kind.lower() == b"bearer" and secrets.compare_digest(value, secret.encode())


async def _refuse(send: Send, status: int, words: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close"), *HEADERS, *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words + b"\n"})

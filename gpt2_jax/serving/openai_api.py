"""An endpoint that speaks OpenAI's API for completions: /v1/completions, /v1/models, /health.

Errors are `{"error": {"message", "type", "param", "code"}}`, as its clients expect. All requests of a model share the
steps of its batcher.
"""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import fastapi
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from gpt2_jax.errors import InputError
from gpt2_jax.serving import completion_request
from gpt2_jax.serving.batcher import Batcher
from gpt2_jax.serving.completion_answer import Answer, Choice, join, usage
from gpt2_jax.serving.completion_request import CompletionRequest
from gpt2_jax.serving.models import Models
from gpt2_jax.serving.prompt_scores import prompt_scores
from gpt2_jax.serving.stream import Busy, Cancelled, Closed, Stream

LARGEST_BODY = 1 << 20  # bytes
RETRY_AFTER = 1  # seconds
log = logging.getLogger(__name__)


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, *, kind: str = "invalid_request_error", **more: Any):
        super().__init__(message)
        self.status, self.headers = status, more.pop("headers", None)
        self.error = {"message": message, "type": kind, "param": more.get("param"), "code": more.get("code")}

    def response(self) -> JSONResponse:
        """The answer that says so."""
        return JSONResponse({"error": self.error}, self.status, self.headers)


def make_app(models: Models, *, api_key: str | None = None) -> fastapi.FastAPI:
    """The endpoint alone. What is not there gets an error of the same kind."""
    app = fastapi.FastAPI(title="gpt2_jax", docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(make_router(models, api_key=api_key))

    @app.exception_handler(HTTPException)
    async def not_there(request: fastapi.Request, error: HTTPException) -> JSONResponse:
        message = f"there is no {request.method} {request.url.path} here; there are /v1/completions and /v1/models"
        return Refused(error.status_code, message, headers=error.headers).response()

    return app


def make_router(models: Models, *, api_key: str | None = None) -> fastapi.APIRouter:
    """The routes, for an application that has others, too.

    Args:
      models: by name; the caller warms and closes them.
      api_key: what clients must send as their key; None asks for none.
    """
    router = fastapi.APIRouter()
    began = int(time.time())

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/v1/models")
    async def list_models(request: fastapi.Request) -> Any:
        return await _answer(
            request, api_key, lambda: {"object": "list", "data": [_card(name, began) for name in models]}
        )

    @router.get("/v1/models/{name:path}")
    async def one_model(name: str, request: fastapi.Request) -> Any:
        return await _answer(request, api_key, lambda: _find(models, name) and _card(name, began))

    @router.post("/v1/completions")
    async def complete(request: fastapi.Request) -> Any:
        return await _answer(request, api_key, lambda: _complete(request, models))

    return router


async def _answer(request: fastapi.Request, api_key: str | None, make: Any) -> Any:
    """What `make` returns or its coroutine does, or the error that it raises, for a client that has the key."""
    try:
        if api_key is not None:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), api_key.encode()):
                headers = {"WWW-Authenticate": "Bearer"}
                message = "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'"
                raise Refused(401, message, kind="authentication_error", code="invalid_api_key", headers=headers)
        made = make()
        return await made if asyncio.iscoroutine(made) else made
    except Exception as error:
        return _refusal(error).response()


def _refusal(error: Exception) -> Refused:
    """The error that a client is told."""
    match error:
        case Refused():
            return error
        case InputError():
            return Refused(400, str(error), param=getattr(error, "param", None))
        case Busy():
            headers = {"Retry-After": str(RETRY_AFTER)}
            return Refused(429, str(error), kind="rate_limit_error", code="rate_limit_exceeded", headers=headers)
        case Closed():
            return Refused(503, "the server is shutting down; try another", kind="server_error", code="shutting_down")
        case Cancelled():
            return Refused(499, "the client has left", kind="cancelled")
    log.error("a completion failed", exc_info=error)
    return Refused(500, "the model failed on this request; the server's log says why", kind="server_error")


def _card(name: str, began: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": began, "owned_by": "gpt2_jax"}


def _find(models: Models, name: str) -> Batcher:
    if name not in models:
        message = f"there is no model {name[:200]!r}; there are {', '.join(models)}"
        raise Refused(404, message, param="model", code="model_not_found")
    return models[name]


async def _body(request: fastapi.Request) -> bytes:
    """The request's body, of which no more is read than may be."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST_BODY:
            raise Refused(413, f"the body is larger than {LARGEST_BODY:,} bytes; send less", code="request_too_large")
    return bytes(body)


async def _complete(http: fastapi.Request, models: Models) -> Any:
    request = completion_request.read(await _body(http))
    batcher = _find(models, request.model)
    choices = await run_in_threadpool(_submit, batcher, request)
    leaving = asyncio.create_task(_cancel_when_left(http, choices))
    answer = Answer(request.model)
    if request.stream:
        return StreamingResponse(_events(answer, choices, request, leaving), media_type="text/event-stream")
    try:
        parts = [await _parts(choice) for choice in choices]
        return answer.of(map(join, parts), usage=usage(choices))
    finally:
        _end(choices, leaving)


def _submit(batcher: Batcher, request: CompletionRequest) -> list[Choice]:
    """The texts of all prompts, or of none where there is no room for all."""
    choices: list[Choice] = []
    streams: list[Stream] = []
    try:
        for prompt in request.prompts:
            ids, options = request.options_for(batcher.lm, prompt)
            for _ in range(request.copies):
                streams += completion_request.with_param(None, batcher.submit_all, ids, **options)
            scores: Sequence[Any] = ()
            if request.echo and (n := options.get("logprobs")) is not None:
                written = streams[-1].request.prompts[0]
                scores = batcher.call(lambda ids=written, n=n: prompt_scores(batcher.lm.model, ids, n)).result()
            for stream in streams[len(choices) :]:
                choice = Choice(len(choices), stream, batcher.lm.tokenizer, echo=request.echo, prompt_scores=scores)
                choices.append(choice)
    except Exception:
        _cancel(streams)
        raise
    return choices


async def _parts(choice: Choice) -> list[dict[str, Any]]:
    return [part async for part in _follow(choice)]


async def _follow(choice: Choice) -> AsyncIterator[dict[str, Any]]:
    if (opening := choice.opening()) is not None:
        yield opening
    async for piece in choice.stream:
        if piece.text or piece.scores:
            yield choice.piece(piece)
    yield choice.end()


async def _events(
    answer: Answer, choices: Sequence[Choice], request: CompletionRequest, leaving: asyncio.Task
) -> AsyncIterator[str]:
    """Server-sent events: the pieces of all choices as they come."""
    news: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()

    async def follow(choice: Choice) -> None:
        try:
            async for part in _follow(choice):
                news.put_nowait(part)
            news.put_nowait(None)
        except Exception as error:
            news.put_nowait(error)

    more = {"usage": None} if request.include_usage else {}
    tasks = [asyncio.create_task(follow(choice)) for choice in choices]
    try:
        writing = len(tasks)
        while writing:
            match await news.get():
                case None:
                    writing -= 1
                case Exception() as error:
                    yield _event({"error": _refusal(error).error})
                    return
                case part:
                    yield _event(answer.of([part], **more))
        if request.include_usage:
            yield _event(answer.of([], usage=usage(choices)))
        yield "data: [DONE]\n\n"
    finally:
        for task in tasks:
            task.cancel()
        _end(choices, leaving)


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


async def _cancel_when_left(http: fastapi.Request, choices: Sequence[Choice]) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
    _cancel(choice.stream for choice in choices)


def _end(choices: Sequence[Choice], leaving: asyncio.Task) -> None:
    leaving.cancel()
    _cancel(choice.stream for choice in choices)


def _cancel(streams: Iterable[Stream]) -> None:
    for stream in streams:
        stream.cancel()

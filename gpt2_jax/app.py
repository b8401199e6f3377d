"""The page: models in a browser. A tab each for writing, probabilities, attention, comparison and captions."""

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import fastapi
import gradio as gr
import uvicorn

from gpt2_jax.errors import InputError
from gpt2_jax.page.assets import asset
from gpt2_jax.page.blocks import make_blocks
from gpt2_jax.page.guard import Guard
from gpt2_jax.page.theme import theme
from gpt2_jax.serving.batcher import Batcher
from gpt2_jax.serving.models import Models


def serve(
    sources: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    api: bool = False,
    tell: Callable[[str], None] = print,
) -> None:
    """Opens and warms the models, then serves them until the process is interrupted.

    Args:
      sources: "name=path", or a path or hub id alone; at least one.
      host, port: where to listen; port 0 takes a free one.
      password: "name:secret".
      api: serve the OpenAI-compatible endpoint, too; with a password, the secret is its key.
      tell: is given lines of progress.

    Raises:
      InputError: there is no such model, the password has no name or secret, or nobody can listen there.
    """
    name, colon, secret = (password or "").partition(":")
    if password and not (name and colon and secret):
        raise InputError("the password must be NAME:SECRET, such as ada:a-long-secret")
    with _listening(host, port) as listener, Models.load(sources) as models:
        models.warm(lambda name: tell(f"warming {name}"))
        router = None
        if api:
            from gpt2_jax.serving.openai_api import make_router

            router = make_router(models)
        app = make_app(models, password=(name, secret) if password else None, api=router)
        at = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        tell(f"the page is at {at}" + (f", the endpoint at {at}/v1" if api else ""))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        uvicorn.Server(config).run(sockets=[listener])


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"nobody can listen at {host}, port {port} ({error.strerror}); give another --port or --host"
        ) from None


def make_app(
    models: Mapping[str, Batcher], *, password: tuple[str, str] | None = None, api: fastapi.APIRouter | None = None
) -> Callable:
    """An ASGI application that serves the page at /.

    Args:
      models: at least one, by name; each is what writes texts with it.
      password: a name and a secret, without which nothing is answered.
      api: further routes, such as those of the OpenAI-compatible endpoint.
    """

    async def build() -> fastapi.FastAPI:  # within a loop: without one, Gradio makes several and closes none
        app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        if api is not None:
            app.include_router(api)
        return gr.mount_gradio_app(
            app, make_blocks(models), "/", theme=theme(), css=asset("style.css"), show_error=False, footer_links=[],
            run_history=False, enable_monitoring=False, ssr_mode=False, mcp_server=False, pwa=False, max_file_size=1,
        )  # fmt: skip

    with ThreadPoolExecutor(1) as thread:  # the caller's may have a loop that runs, as a notebook's does
        app = thread.submit(asyncio.run, build()).result()
    return Guard(app, besides=() if api is None else ("/v1/", "/health"), password=password)

"""The page: models in a browser. A tab each for writing, probabilities, attention, comparison and captions."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import fastapi
import gradio as gr

from gpt2_jax.errors import InputError
from gpt2_jax.page.assets import asset
from gpt2_jax.page.blocks import make_blocks
from gpt2_jax.page.guard import Guard
from gpt2_jax.page.theme import theme
from gpt2_jax.serving.batcher import Batcher
from gpt2_jax.serving.models import Models
from gpt2_jax.serving.openai_api import make_router
from gpt2_jax.serving.server import listening, run


def serve(
    sources: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    api: bool = False,
    api_key: str | None = None,
    **options: int,
) -> None:
    """Opens and compiles the models, then serves their page until SIGINT or SIGTERM.

    Args:
      sources: as `Models.load` takes them.
      host, port: to listen at; port 0 is any that is free.
      password: "name:secret".
      api: serve the OpenAI-compatible endpoint, too.
      api_key: that its clients must send; without one the secret of the password, if there is one.
      **options: those of `Batcher`.

    Raises:
      InputError: nothing to load, a password without name or secret, or an address that cannot be listened at.
    """
    name, _, secret = (password or "").partition(":")
    if password and not (name and secret):
        raise InputError("the password must be NAME:SECRET, such as ada:a-long-secret")
    with listening(host, port) as listener, Models.load(sources, **options) as models:
        models.warm(lambda name: print(f"compiling for {name} ...", flush=True))
        router = make_router(models, api_key=api_key or secret or None) if api else None
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        print(f"{', '.join(models)} at {url}" + (f", for programs at {url}/v1" if api else ""), flush=True)
        run(make_app(models, password=(name, secret) if password else None, api=router), listener)


def make_app(
    models: Mapping[str, Batcher], *, password: tuple[str, str] | None = None, api: fastapi.APIRouter | None = None
) -> Callable:
    """An ASGI application that serves the page at /.

    Args:
      models: at least one, by name; each is what writes texts with it.
      password: a name and a secret, without which nothing of the page is answered.
      api: the routes of the OpenAI-compatible endpoint, which ask for their own key.
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

"""What the tabs share: the models, what readers have running, and the pieces of the page that show texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
import jax

from gpt2_jax.errors import check
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.page.assets import asset
from gpt2_jax.page.running import Readers
from gpt2_jax.serving.batcher import Batcher
from gpt2_jax.serving.stream import Stream

HIDDEN = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}  # of events within the page


class Shared:
    """The models and the readers.

    Attributes:
      models: by name, each with what writes its texts; the first is shown first.
      readers: what each has running.
    """

    def __init__(self, models: Mapping[str, Batcher]):
        self.models, self.readers = models, Readers()

    @property
    def names(self) -> list[str]:
        """Of the models, the first one is shown."""
        return list(self.models)

    def lm(self, name: Any = None) -> LanguageModel:
        """The model of a name; the first without one.

        Raises:
          InputError: there is none of that name.
        """
        return self.models[self.name(name)].lm

    def name(self, name: Any = None) -> str:
        """One of the models, by what the page sent; without that the first."""
        name = self.names[0] if name is None else name
        check(isinstance(name, str) and name in self.names, "model", name, f"one of {', '.join(self.names)}")
        return name

    def facts(self, name: Any = None) -> str:
        """A model's sizes, in words."""
        lm = self.lm(name)
        config, count = lm.config, sum(x.size for x in jax.tree.leaves(lm.model))
        return (
            f"{count / 1e6:,.1f} million parameters, {config.n_layer} layers of {config.n_head} heads, "
            f"context of {config.n_positions:,} tokens, vocabulary of {config.vocab_size:,}"
        )

    def submit(self, name: str, prompt: str, **options: Any) -> Stream:
        """Has a model continue a prompt beside all others, see `Batcher.submit`."""
        return self.models[self.name(name)].submit(prompt, **options)

    def cards(self, label: str, empty: str, *, reuse: bool = True, **where: Any) -> gr.HTML:
        """Where texts are shown; with `reuse` it has events: to use a text's seed again, and to look at its tokens."""
        no = "" if reuse else ' data-reuse="no"'
        template = f'<div class="cards" role="region" aria-label="{label}" data-empty="{empty}"{no}></div>'
        return gr.HTML([], html_template=template, js_on_load=asset("cards.js"), apply_default_css=False, **where)


class Part:
    """A tab.

    Attributes:
      of_model: the components that another model changes.
    """

    def __init__(self, shared: Shared):
        self.shared, self.of_model = shared, []

    def write_on(
        self, events: Sequence[Callable], write: gr.Button, stop: gr.Button, function: Callable, **event: Any
    ) -> None:
        """Has a function write when one of the events comes; meanwhile one button is off, and the other on."""
        begin, end = ([gr.update(interactive=on) for on in pair] for pair in ((False, True), (True, False)))
        writing = gr.on(events, lambda: begin, None, [write, stop], **HIDDEN).then(
            function, preprocess=False, concurrency_limit=None, show_progress="hidden", **event
        )
        for ended in (writing.success, writing.failure):
            ended(lambda: end, None, [write, stop], **HIDDEN)

    def updates(self, lm: LanguageModel) -> list[dict[str, Any]]:
        """What `of_model` become for a model."""
        return []

    def _stop(self, request: gr.Request) -> None:
        self.shared.readers.stop(request.session_hash)

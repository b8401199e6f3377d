"""All tabs in one page, with the model that they share."""

from collections.abc import Mapping

import gradio as gr

from gpt2_jax.page.attention import AttentionTab
from gpt2_jax.page.caption import CaptionTab, able
from gpt2_jax.page.compare import CompareTab
from gpt2_jax.page.parts import HIDDEN, Shared
from gpt2_jax.page.probabilities import ProbabilitiesTab
from gpt2_jax.page.write import WriteTab
from gpt2_jax.serving.batcher import Batcher

WAITING = 200  # requests of all kinds that may wait; more are told to come back


def make_blocks(models: Mapping[str, Batcher]) -> gr.Blocks:
    """The page, to be mounted."""
    shared = Shared(models)
    with gr.Blocks(title="gpt2_jax", analytics_enabled=False) as blocks:
        with gr.Row(elem_classes="top"):
            gr.Markdown("# gpt2_jax\nWatch a GPT-2 write, and look inside.", elem_classes="name")
            with gr.Column(elem_classes="model", min_width=240):
                names = shared.names
                model = gr.Dropdown(names, value=names[0], label="Model", interactive=len(names) > 1, elem_id="model")
                facts = gr.Markdown(shared.facts(), elem_classes="facts")
        with gr.Tabs() as tabs:
            with gr.Tab("Write", id="write"):
                write = WriteTab(shared, model)
            with gr.Tab("Probabilities", id="probabilities"):
                probabilities = ProbabilitiesTab(shared, model)
            with gr.Tab("Attention", id="attention"):
                attention = AttentionTab(shared, model)
            with gr.Tab("Compare", id="compare"):
                CompareTab(shared)
            if able(shared):
                with gr.Tab("Caption", id="caption"):
                    CaptionTab(shared)
        _follow_model(shared, model, facts, [write, attention])
        _look_at_texts(model, tabs, write, probabilities)

        def leave(request: gr.Request) -> None:
            shared.readers.stop(request.session_hash)

        blocks.unload(leave)
    return blocks.queue(max_size=WAITING, default_concurrency_limit=2, api_open=False)


def _follow_model(shared: Shared, model: gr.Dropdown, facts: gr.Markdown, parts: list) -> None:
    """Another model changes what is said of it, and the tabs."""

    def change(name: str) -> list:
        return [shared.facts(name), *(update for part in parts for update in part.updates(shared.lm(name)))]

    changed = [facts, *(component for part in parts for component in part.of_model)]
    model.change(change, model, changed, **HIDDEN)


def _look_at_texts(model: gr.Dropdown, tabs: gr.Tabs, write: WriteTab, probabilities: ProbabilitiesTab) -> None:
    """A text that was written can be looked at in the other tab."""

    def text(event: gr.EventData) -> str:
        return event.text

    looking = write.results.look(text, None, probabilities.text, **HIDDEN)
    looking = looking.then(lambda: gr.update(selected="probabilities"), None, tabs, **HIDDEN)
    looking.then(
        probabilities.look, inputs_kwargs={"model": model, "text": probabilities.text}, outputs=probabilities.tokens,
        preprocess=False, concurrency_id="look", api_visibility="private",
    )  # fmt: skip

"""The tab that shows where heads look: one token by token, all of a layer, or what kind each of the model is."""

import html
from typing import Any

import gradio as gr

from gpt2_jax.analysis.attention_maps import attention_of, head_statistics
from gpt2_jax.analysis.attention_plots import head_map, layer_grid, statistics_grid
from gpt2_jax.analysis.pages import embedded
from gpt2_jax.errors import check
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.page.controls import number, text
from gpt2_jax.page.parts import HIDDEN, Part, Shared
from gpt2_jax.page.running import told

LONGEST_TEXT = 8_000  # characters
EXAMPLE = "def add(a, b):\n    return a + b\n\ndef add(a, b):\n    return a + b\n"
HEAD, LAYER, KINDS = "head", "layer", "kinds"
VIEWS = (("One head", HEAD), ("All heads of a layer", LAYER), ("What kind each head is", KINDS))
EMPTY = '<div class="picture empty" data-empty="The picture appears here."></div>'


class AttentionTab(Part):
    """A text, what to show of it, and the picture."""

    def __init__(self, shared: Shared, model: gr.Dropdown):
        super().__init__(shared)
        self.look = told(self._look)
        gr.Markdown("How much each token looks back at those before it.", elem_classes="hint")
        with gr.Row(elem_classes="sides"):
            with gr.Column(scale=2, min_width=280):
                self.text = gr.Textbox(
                    EXAMPLE, label="Text", lines=5, max_lines=12, max_length=LONGEST_TEXT, elem_id="attention-text"
                )
                view = gr.Radio(list(VIEWS), value=HEAD, label="Show", elem_id="attention-view")
                layer = gr.Slider(0, 1, 0, step=1, label="Layer", elem_id="attention-layer")
                head = gr.Slider(0, 1, 0, step=1, label="Head", elem_id="attention-head")
                with gr.Row(elem_classes="tight"):
                    button = gr.Button("Show attention", variant="primary", elem_id="show-attention")
            with gr.Column(scale=3, min_width=300):
                picture = gr.HTML(EMPTY, apply_default_css=False, elem_id="attention-picture")
        self.of_model = [layer, head]
        for slider, update in zip(self.of_model, self.updates(shared.lm())):
            slider.maximum, slider.interactive = update["maximum"], update["interactive"]
        view.change(
            lambda chosen: [gr.update(visible=chosen != KINDS), gr.update(visible=chosen == HEAD)], view, [layer, head],
            **HIDDEN,
        )  # fmt: skip
        gr.on(
            [button.click, self.text.submit, view.change, layer.change, head.change], self.look,
            inputs_kwargs={"model": model, "text": self.text, "view": view, "layer": layer, "head": head},
            outputs=picture, api_name="attention", preprocess=False, concurrency_id="look", trigger_mode="always_last",
        )  # fmt: skip

    def updates(self, lm: LanguageModel) -> list[dict[str, Any]]:
        """What the layers and heads of another model change on the tab."""
        counts = (lm.config.n_layer, lm.config.n_head)
        return [gr.update(maximum=max(1, n - 1), value=0, interactive=n > 1) for n in counts]

    def _look(self, model: Any, text: Any, view: Any = HEAD, layer: Any = 0, head: Any = 0) -> str:
        return attention(self.shared, model, text, view, layer, head)


def attention(shared: Shared, model: Any, given: Any, view: Any, layer: Any, head: Any) -> str:
    """The picture as HTML, with words for those who do not see it.

    Raises:
      InputError: no such model, view, layer or head, or a text that is too short or too long.
    """
    lm, given = shared.lm(model), text("text", given, LONGEST_TEXT)
    known = [name for _, name in VIEWS]
    check(isinstance(view, str) and view in known, "view", view, f"one of {', '.join(known)}")
    if view == KINDS:
        found = head_statistics(lm, given)
        figure, words = statistics_grid(found), f"What kind each head is, over {found.tokens} tokens"
    else:
        n = lm.config.n_layer
        layer = number("layer", 0 if layer is None else layer, whole=True)
        check(0 <= layer < n, "layer", layer, f"from 0 to {n - 1}")
        found = attention_of(lm, given, layer)
        if view == HEAD:
            head = number("head", 0 if head is None else head, whole=True)
            figure, words = head_map(found, head), f"Attention of head {head} of layer {layer}"
        else:
            figure, words = layer_grid(found), f"Attention of all heads of layer {layer}"
        words += f", {len(found.tokens)} tokens"
    return f'<div class="picture"><img src="{embedded(figure)}" alt="{html.escape(words)}"></div>'

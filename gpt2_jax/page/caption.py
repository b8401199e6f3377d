"""The tab that tells what is on a picture; it is there when one of the models can."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from gpt2_jax.errors import check
from gpt2_jax.image_language_model import ImageLanguageModel
from gpt2_jax.page import settings
from gpt2_jax.page.assets import asset
from gpt2_jax.page.controls import text
from gpt2_jax.page.images import read_image
from gpt2_jax.page.parts import Shared
from gpt2_jax.page.running import told
from gpt2_jax.page.write import REASONS, next_seed, read_seed

LONGEST_PROMPT = 2_000  # characters
LONGEST_CAPTION = 64  # tokens
IMAGE_INPUT = (
    '<label class="drop">'
    '<span class="words">Choose a picture, or drop or paste one here: PNG, JPEG, WebP or GIF.</span>'
    '<input type="file" accept="image/png,image/jpeg,image/webp,image/gif" aria-label="Picture"><img hidden></label>'
)


def able(shared: Shared) -> list[str]:
    """The names of the models that write captions of pictures."""
    lms = {name: shared.lm(name) for name in shared.names}
    return [name for name, lm in lms.items() if isinstance(lm, ImageLanguageModel) and not lm.image.features]


class CaptionTab:
    """A picture, and texts about it."""

    def __init__(self, shared: Shared):
        self.shared = shared
        self.caption = told(self._caption)
        names = able(shared)
        with gr.Row(elem_classes="sides"):
            with gr.Column(scale=5, min_width=320):
                model = gr.Dropdown(names, value=names[0], label="Model for pictures", interactive=len(names) > 1)
                image = gr.HTML(
                    "", html_template=IMAGE_INPUT, js_on_load=asset("image_input.js"), apply_default_css=False,
                    elem_id="caption-image",
                )  # fmt: skip
                prompt = gr.Textbox(
                    "", label="Beginning of the caption", max_lines=3, max_length=LONGEST_PROMPT,
                    info="May be empty.", elem_id="caption-prompt",
                )  # fmt: skip
                with gr.Row(elem_classes="tight"):
                    button = gr.Button("Caption", variant="primary", elem_id="caption")
                cards = shared.cards("Captions", "The caption appears here.", elem_id="captions", reuse=False)
            with gr.Column(scale=3, min_width=300, elem_classes="settings"):
                panel = settings.SettingsPanel(shared.lm(names[0]), method=settings.GREEDY)
                panel.inputs["max_new_tokens"].maximum = panel.inputs["max_new_tokens"].value = LONGEST_CAPTION
                candidates = gr.Slider(1, settings.MOST_CANDIDATES, 1, step=1, label="Candidates")
                seed = gr.Textbox("", label="Seed", placeholder="a new one each time", max_lines=1, max_length=20)
                panel.make_groups()
        inputs = {
            "model": model, "image": image, "prompt": prompt, "candidates": candidates, "seed": seed, **panel.inputs
        }  # fmt: skip
        gr.on(
            [button.click, prompt.submit], self.caption, inputs_kwargs=inputs, outputs=cards, api_name="caption",
            preprocess=False, concurrency_id="look",
        )  # fmt: skip

    def _caption(
        self, model: Any, image: Any, prompt: Any = "", candidates: Any = 1, seed: Any = None, **values: Any
    ) -> list[dict[str, Any]]:
        return captions(self.shared, model, image, prompt, candidates, seed, values)


def captions(
    shared: Shared, model: Any, image: Any, prompt: Any, candidates: Any, seed: Any, values: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Cards of captions, each with its seed.

    Raises:
      InputError: no such model, what is no picture, or settings that `caption` refuses.
    """
    names = able(shared)
    model = names[0] if model is None else model
    check(model in names, "model", model, f"one that writes captions: {', '.join(names)}")
    lm, prompt, asked = shared.lm(model), text("prompt", prompt, LONGEST_PROMPT), settings.options(values)
    count, first = settings.read_candidates(candidates, values), read_seed(seed)
    seeds = [next_seed(first, i) for i in range(count)]
    room = lm.config.n_positions - lm.image.tokens - len(lm.tokenizer.encode(prompt))
    asked["max_new_tokens"] = min(asked.get("max_new_tokens", LONGEST_CAPTION), LONGEST_CAPTION, max(1, room))
    pictures = [read_image(image)] * count  # as one batch
    found = lm.caption(pictures, prompt=[prompt] * count, seed=seeds, **asked)
    return [
        {
            "model": model, "seed": seed, "prompt": prompt, "completion": one.completion, "done": True,
            "note": REASONS[one.stop_reason],
        }
        for seed, one in zip(seeds, found)
    ]  # fmt: skip

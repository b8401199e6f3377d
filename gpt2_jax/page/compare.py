"""The tab that writes twice beside itself: the same prompt and seed under two settings, or from two models."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from gpt2_jax.page import settings
from gpt2_jax.page.parts import HIDDEN, Part, Shared
from gpt2_jax.page.running import told
from gpt2_jax.page.write import LONGEST_PROMPT, PRESETS, card, job, read_seed

SIDES = ("left", "right")


class CompareTab(Part):
    """A prompt and a seed; a model, settings and the text on each side."""

    def __init__(self, shared: Shared):
        super().__init__(shared)
        self.compare, self.stop = told(self._compare), told(self._stop)
        gr.Markdown("One prompt and one seed, two models or two settings.", elem_classes="hint")
        self.prompt = gr.Textbox(
            PRESETS["Code"].prompt,
            label="Prompt",
            lines=3,
            max_lines=10,
            max_length=LONGEST_PROMPT,
            elem_id="compare-prompt",
        )
        with gr.Row(elem_classes="tight"):
            self.seed = gr.Textbox(
                "0", label="Seed", placeholder="a new one each time", max_lines=1, max_length=20, elem_id="compare-seed"
            )
        with gr.Row(elem_classes="tight"):
            write = gr.Button("Write both", variant="primary", elem_id="compare", min_width=120)
            stop = gr.Button("Stop", variant="stop", elem_id="compare-stop", min_width=120, interactive=False)
        inputs, cards, self.panels = {"prompt": self.prompt, "seed": self.seed}, [], []
        with gr.Row(elem_classes="sides"):
            for i, side in enumerate(SIDES):
                with gr.Column(min_width=300):
                    cards.append(self._side(side, i, inputs))
        self.write_on(
            [write.click, self.prompt.submit], write, stop, self.compare, inputs_kwargs=inputs, outputs=cards,
            api_name="compare",
        )  # fmt: skip
        stop.click(self.stop, None, None, **HIDDEN)

    def _side(self, side: str, number: int, inputs: dict) -> gr.HTML:
        shared, names = self.shared, self.shared.names
        model = gr.Dropdown(
            names, value=names[min(number, len(names) - 1)], label=f"Model, {side}", interactive=len(names) > 1
        )
        shown = shared.cards(f"Text, {side}", "The text appears here.", elem_id=f"compare-{side}", reuse=False)
        with gr.Column(elem_classes="settings"):
            same = number and len(names) == 1  # then the settings differ
            panel = settings.SettingsPanel(shared.lm(model.value), settings.GREEDY if same else settings.SAMPLE)
            panel.make_groups()
        inputs |= {f"{side}_{name}": component for name, component in {"model": model, **panel.inputs}.items()}
        model.change(lambda name: panel.codes_of(shared.lm(name)), model, panel.codes, **HIDDEN)
        return shown

    def _compare(self, request: gr.Request, prompt: Any, seed: Any = None, **values: Any) -> Iterator[list[list[dict]]]:
        shared, seed = self.shared, read_seed(seed)
        jobs = []
        for side in SIDES:
            of_side = {name.removeprefix(f"{side}_"): v for name, v in values.items() if name.startswith(f"{side}_")}
            jobs.append(job(shared, of_side.pop("model", None), prompt, of_side))
        start = [lambda job=job: shared.submit(job.model, job.prompt, seed=seed, **job.options) for job in jobs]
        for texts in shared.readers.follow(request.session_hash, start):
            yield [[card(shared, job, seed, text)] for job, text in zip(jobs, texts)]

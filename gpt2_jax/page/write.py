"""The tab that continues a prompt: text as it comes, several candidates, each with the seed that gives it again."""

import dataclasses
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from gpt2_jax.errors import check
from gpt2_jax.generation.options import parse
from gpt2_jax.generation.request import make_request
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.page import settings
from gpt2_jax.page.controls import number, text, written
from gpt2_jax.page.parts import HIDDEN, Part, Shared
from gpt2_jax.page.running import Text, told

LONGEST_PROMPT = 20_000  # characters
LARGEST_SEED = 2**31 - 1
REASONS = {"end_token": "came to an end", "stop_string": "came to a stop string", "length": "", "time": "out of time"}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A beginning, and settings that suit it."""

    prompt: str
    values: Mapping[str, Any]


PRESETS = {
    "Story": Preset(
        "Once upon a time, in a house at the edge of the woods, there lived",
        {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1},
    ),
    "Poem": Preset(
        "The evening came across the field,\nAnd every leaf was still;\n",
        {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.0},
    ),
    "Code": Preset(
        'def is_prime(n):\n    """Return True if n is a prime number."""\n',
        {"temperature": 0.4, "top_p": 0.95, "repetition_penalty": 1.0},
    ),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One prompt under some settings, checked.

    Attributes:
      model: the name of the model.
      prompt: what is continued.
      prompt_tokens: as many it has, with a control code.
      options: of `generate`, without the seed.
      cut: whether the context has room for fewer new tokens than were asked for.
    """

    model: str
    prompt: str
    prompt_tokens: int
    options: Mapping[str, Any]
    cut: bool


def job(shared: Shared, model: Any, prompt: Any, values: Mapping[str, Any]) -> Job:
    """Reads a request. Where the context has no room for all the new tokens, it asks for those that fit.

    Raises:
      InputError: a value out of bounds, or what `generate` refuses.
    """
    model, lm = shared.name(model), shared.lm(model)
    prompt = text("prompt", prompt, LONGEST_PROMPT)
    asked = settings.options(values)
    least = {**asked, "max_new_tokens": 1, "min_new_tokens": 0}
    request = make_request([prompt], parse(least), lm.tokenizer, lm.config)
    wanted, least_new = (asked.get(name, 0) for name in ("max_new_tokens", "min_new_tokens"))
    room = lm.config.n_positions - max(map(len, request.prompts + request.negative))
    cut = wanted > room and asked.get("beyond_context") != "slide"
    if cut:
        asked["max_new_tokens"] = room
        if least_new:
            asked["min_new_tokens"] = min(least_new, room)
    parse(asked)
    return Job(model, prompt, len(request.prompts[0]), asked, cut)


def read_seed(given: Any) -> int:
    """The seed that was given, or a new one.

    Raises:
      InputError: it is no whole number that a seed can be.
    """
    if given is None or given == "":
        return secrets.randbelow(1_000_000)
    seed = number("seed", written("seed", given), whole=True)
    check(0 <= seed <= LARGEST_SEED, "seed", seed, f"from 0 to {LARGEST_SEED}, or empty for a new one each time")
    return seed


def next_seed(first: int, i: int) -> int:
    """The seed of candidate `i`."""
    return (first + i) % (LARGEST_SEED + 1)


def card(shared: Shared, job: Job, seed: int, text: Text) -> dict[str, Any]:
    """What the page shows of a text, and a program that asks gets."""
    note, done = "", text.generation
    if done is not None:
        new = len(done.tokens) - job.prompt_tokens
        full = done.stop_reason == "length" and job.cut
        reason = (
            f"filled the context of {shared.lm(job.model).config.n_positions:,}" if full else REASONS[done.stop_reason]
        )
        note = ", ".join(filter(None, [f"{new} token{'s' * (new != 1)}", reason]))
    elif text.ended:
        note = "stopped"
    return {
        "model": job.model,
        "seed": seed,
        "prompt": job.prompt,
        "completion": text.completion,
        "done": text.ended,
        "note": note,
    }


class WriteTab(Part):
    """Prompt, settings and candidates."""

    def __init__(self, shared: Shared, model: gr.Dropdown):
        super().__init__(shared)
        self.write, self.stop = told(self._write), told(self._stop)
        with gr.Row(elem_classes="sides"):
            with gr.Column(scale=5, min_width=320):
                self.prompt = gr.Textbox(
                    PRESETS["Code"].prompt, label="Prompt", lines=4, max_lines=14, max_length=LONGEST_PROMPT,
                    info="The text to go on with. Empty: the model begins anew.", elem_id="prompt",
                )  # fmt: skip
                with gr.Row(elem_classes="presets"):
                    gr.Markdown("Begin with", elem_classes="hint")
                    presets = {name: gr.Button(name, size="sm", min_width=0) for name in PRESETS}
                with gr.Row(elem_classes="tight"):
                    write = gr.Button("Write", variant="primary", elem_id="write", min_width=120)
                    stop = gr.Button("Stop", variant="stop", elem_id="stop", min_width=120, interactive=False)
                self.results = shared.cards(
                    "Results of Write", "What the model writes appears here.", elem_id="results"
                )
            with gr.Column(scale=3, min_width=300, elem_classes="settings"):
                self.panel = settings.SettingsPanel(shared.lm())
                self.candidates = gr.Slider(
                    1, settings.MOST_CANDIDATES, 1, step=1, label="Candidates",
                    info="Texts side by side; each has the next seed.",
                )  # fmt: skip
                self.seed = gr.Textbox(
                    "", label="Seed", elem_id="seed", placeholder="a new one each time", max_lines=1, max_length=20,
                    info="The same seed gives the same text; it is shown with each.",
                )  # fmt: skip
                self.panel.make_groups()
        inputs = {
            "model": model, "prompt": self.prompt, "candidates": self.candidates, "seed": self.seed,
            **self.panel.inputs,
        }  # fmt: skip
        self.write_on(
            [write.click, self.prompt.submit], write, stop, self.write, inputs_kwargs=inputs, outputs=[self.results],
            api_name="write",
        )  # fmt: skip
        self.of_model = self.panel.codes
        stop.click(self.stop, None, None, queue=False, show_progress="hidden", api_name="stop")
        self.results.reuse(self._reuse, None, self.seed, **HIDDEN)
        for name, button in presets.items():
            chosen = [self.panel.inputs[setting] for setting in PRESETS[name].values]
            values = [PRESETS[name].prompt, *PRESETS[name].values.values()]
            button.click(lambda values=values: values, None, [self.prompt, *chosen], **HIDDEN)

    def updates(self, lm: LanguageModel) -> list[dict[str, Any]]:
        """What the control codes of another model change on the tab."""
        return self.panel.codes_of(lm)

    def _write(
        self, request: gr.Request, model: Any, prompt: Any, candidates: Any = 1, seed: Any = None, **values: Any
    ) -> Iterator[list[dict]]:
        work = job(self.shared, model, prompt, values)
        count = settings.read_candidates(candidates, values)
        first = read_seed(seed)
        seeds = [next_seed(first, i) for i in range(count)]
        start = [
            lambda seed=seed: self.shared.submit(work.model, work.prompt, seed=seed, **work.options) for seed in seeds
        ]
        for texts in self.shared.readers.follow(request.session_hash, start):
            yield [card(self.shared, work, seed, text) for seed, text in zip(seeds, texts)]

    def _reuse(self, event: gr.EventData) -> Any:
        return str(read_seed(event.seed))

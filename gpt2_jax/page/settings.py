"""The settings of a text on the page: every option of `generate`, in groups, each with its explanation."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import gradio as gr

from gpt2_jax.errors import check
from gpt2_jax.generation.options import DEFAULTS, Options
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.page.controls import Biases, Choice, Code, Ids, Line, OptionalNumber, Pair, Phrases, Slider, number
from gpt2_jax.page.parts import HIDDEN

SAMPLE, GREEDY, BEAMS, DRAWN_BEAMS, CONTRASTIVE = "sample", "greedy", "beams", "drawn_beams", "contrastive"
METHODS = {
    "Sampling": SAMPLE,
    "Greedy": GREEDY,
    "Beam search": BEAMS,
    "Sampled beams": DRAWN_BEAMS,
    "Contrastive search": CONTRASTIVE,
}
EVERY = tuple(METHODS.values())
DRAWN, STEPWISE, BEAMED = (SAMPLE, DRAWN_BEAMS), (SAMPLE, GREEDY), (BEAMS, DRAWN_BEAMS)
MOST_NEW_TOKENS, MOST_CANDIDATES = 1024, 6
CONTRASTIVE_TOP_K = 4  # of Su et al.

FIRST = ""  # the group that is always open
CHOICE, REPETITION, WORDS, LENGTH, CONTROL, SEARCH = (
    "Which tokens may be drawn", "Repetition", "Words", "Length and end", "Control and guidance", "Search",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
    """An option on the page.

    Attributes:
      name: of the option.
      label: what stands above the control.
      group: where it is found.
      control: its kind, bounds and start.
      methods: those that take it; it is shown and sent with these alone.
    """

    name: str
    label: str
    group: str
    control: Any
    methods: tuple[str, ...] = EVERY


EARLY = (("at num_beams finished texts", True), ("when a better one is unlikely", False), ("when impossible", "never"))
SETTINGS = (
    Setting("max_new_tokens", "New tokens", FIRST, Slider(1, MOST_NEW_TOKENS, 1, 128)),
    Setting("temperature", "Temperature", FIRST, Slider(0.0, 2.0, 0.05, 0.8), DRAWN),
    Setting("top_p", "Top-p", FIRST, Slider(0.05, 1.0, 0.01, 0.95), DRAWN),
    Setting("top_k", "Top-k", CHOICE, Slider(0, 200, 1, 0), (*DRAWN, CONTRASTIVE)),
    Setting("min_p", "Min-p", CHOICE, Slider(0.0, 0.5, 0.01, 0.0), DRAWN),
    Setting("typical_p", "Typical-p", CHOICE, Slider(0.05, 1.0, 0.01, 1.0), DRAWN),
    Setting("epsilon_cutoff", "Epsilon cutoff", CHOICE, Slider(0.0, 0.02, 0.0001, 0.0), DRAWN),
    Setting("eta_cutoff", "Eta cutoff", CHOICE, Slider(0.0, 0.02, 0.0001, 0.0), DRAWN),
    Setting("best_of", "Best of", CHOICE, OptionalNumber(1, 16, whole=True), (SAMPLE,)),
    Setting("repetition_penalty", "Repetition penalty", REPETITION, Slider(0.5, 2.0, 0.01, 1.0)),
    Setting("presence_penalty", "Presence penalty", REPETITION, Slider(-2.0, 2.0, 0.05, 0.0)),
    Setting("frequency_penalty", "Frequency penalty", REPETITION, Slider(-2.0, 2.0, 0.05, 0.0)),
    Setting("no_repeat_ngram_size", "No repeated n-grams", REPETITION, Slider(0, 10, 1, 0)),
    Setting("num_beams", "Beams", SEARCH, Slider(2, 8, 1, 4), BEAMED),
    Setting("num_beam_groups", "Groups of beams", SEARCH, Slider(1, 8, 1, 1), BEAMED),
    Setting("diversity_penalty", "Diversity penalty", SEARCH, Slider(0.0, 5.0, 0.1, 0.0), BEAMED),
    Setting("length_penalty", "Length penalty", SEARCH, Slider(-2.0, 4.0, 0.1, 1.0), BEAMED),
    Setting("early_stopping", "The search stops", SEARCH, Choice(EARLY, False), BEAMED),
    Setting("penalty_alpha", "Penalty alpha", SEARCH, Slider(0.05, 1.0, 0.05, 0.6), (CONTRASTIVE,)),
    Setting("min_new_tokens", "At least", LENGTH, Slider(0, MOST_NEW_TOKENS, 1, 0)),
    Setting("stop_strings", "Stop at (one a line)", LENGTH, Phrases(2), STEPWISE),
    Setting("exponential_decay_length_penalty", "Shorter or longer (n, factor)", LENGTH, Pair()),
    Setting("line_length", "Length of lines (characters, strength)", LENGTH, Pair()),
    Setting("max_time", "Seconds", LENGTH, OptionalNumber(0.1, 600), STEPWISE),
    Setting("eos_token_id", "End tokens", LENGTH, Ids()),
    Setting(
        "beyond_context", "At the end of the context", LENGTH,
        Choice((("stop there", "error"), ("slide on", "slide")), "error"), STEPWISE,
    ),
    Setting("bad_words_ids", "Must not come (one a line)", WORDS, Phrases(2)),
    Setting("sequence_bias", "More or less likely (phrase=number, one a line)", WORDS, Biases(2)),
    Setting("suppress_tokens", "Tokens that never come", WORDS, Ids()),
    Setting("begin_suppress_tokens", "Tokens that do not come first", WORDS, Ids()),
    Setting("forced_bos_token_id", "The first token", WORDS, OptionalNumber(0, 2**31 - 1, whole=True)),
    Setting("forced_eos_token_id", "The last token", WORDS, OptionalNumber(0, 2**31 - 1, whole=True)),
    Setting("control", "Control code", CONTROL, Code()),
    Setting("guidance_scale", "Guidance scale", CONTROL, Slider(0.5, 5.0, 0.1, 1.0), STEPWISE),
    Setting("negative_prompt", "Away from this text", CONTROL, Line(2), STEPWISE),
    Setting("negative_control", "Away from this code", CONTROL, Code(), STEPWISE),
)  # fmt: skip
HELP = {field.name: field.metadata["help"] for field in Options.fields()}


def method_of(values: Mapping[str, Any]) -> str:
    """How tokens are found; sampling at a temperature of 0 is greedy.

    Raises:
      InputError: there is no such method.
    """
    method = values.get("method") or SAMPLE
    check(method in EVERY, "method", method, f"one of {', '.join(EVERY)}")
    cold = method in DRAWN and values.get("temperature") == 0
    return {SAMPLE: GREEDY, DRAWN_BEAMS: BEAMS}[method] if cold else method


def options(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `generate` that the settings ask for: those that their method takes and that change something.

    Args:
      values: by the names of settings, and `method`; what is missing is as on a fresh page.

    Raises:
      InputError: a value of the wrong kind or out of the page's bounds.
    """
    method = method_of(values)
    asked = {"temperature": 0.0} if method == GREEDY else {}
    for setting in SETTINGS:
        if method in setting.methods:
            value = setting.control.read(setting.name, values.get(setting.name))
            if value is not None and value != DEFAULTS[setting.name]:
                asked[setting.name] = value
    return asked


def read_candidates(given: Any, values: Mapping[str, Any]) -> int:
    """How many texts are asked for.

    Raises:
      InputError: too many, or several of a method that always gives the same text.
    """
    count = number("candidates", 1 if given is None else given, whole=True)
    check(1 <= count <= MOST_CANDIDATES, "candidates", count, f"from 1 to {MOST_CANDIDATES}")
    alike = count > 1 and method_of(values) not in DRAWN
    check(not alike, "candidates", count, "1 with a method that draws nothing: all would be the same")
    return count


class SettingsPanel:
    """The controls of all settings; those that a method does not take are hidden. The first group is made at once.

    Attributes:
      inputs: by name, the components to be read, `method` among them.
    """

    def __init__(self, lm: LanguageModel, method: str = SAMPLE):
        self.method = gr.Dropdown(
            list(METHODS.items()), value=method, label="Method",
            info="Sampling draws; the others look for what is probable.",
        )  # fmt: skip
        self.inputs, self._lm, self._groups = {"method": self.method}, lm, {}
        self._make(FIRST)

    def make_groups(self) -> None:
        """Makes the controls of all but the first group, each group folded."""
        for group in dict.fromkeys(setting.group for setting in SETTINGS if setting.group):
            taken = any(self.method.value in setting.methods for setting in SETTINGS if setting.group == group)
            with gr.Accordion(group, open=group == SEARCH, visible=taken) as self._groups[group]:
                self._make(group)
        self._show_codes(self._lm)
        changed = [*self._groups.values(), *(self.inputs[setting.name] for setting in SETTINGS)]
        self.method.change(self._of_method, self.method, changed, **HIDDEN)

    @property
    def codes(self) -> list[gr.Dropdown]:
        """The controls that hold a model's control codes."""
        return [self.inputs["control"], self.inputs["negative_control"]]

    @staticmethod
    def codes_of(lm: LanguageModel) -> list[dict[str, Any]]:
        """What `codes` become for another model."""
        names = list(lm.tokenizer.control_codes)
        none = "none" if names else "this model has no control codes"
        choices = [(none, ""), *((name, name) for name in names)]
        return [gr.update(choices=choices, value="", interactive=bool(names)) for _ in range(2)]

    def _show_codes(self, lm: LanguageModel) -> None:
        for dropdown, update in zip(self.codes, self.codes_of(lm)):
            dropdown.choices, dropdown.interactive = update["choices"], update["interactive"]

    def _make(self, group: str) -> None:
        for setting in SETTINGS:
            if setting.group == group:
                self.inputs[setting.name] = setting.control.component(
                    label=setting.label, info=HELP[setting.name], visible=self.method.value in setting.methods
                )

    def _of_method(self, method: str) -> list[dict[str, Any]]:
        groups = [
            gr.update(visible=any(method in setting.methods for setting in SETTINGS if setting.group == group))
            for group in self._groups
        ]
        shown = {setting.name: gr.update(visible=method in setting.methods) for setting in SETTINGS}
        shown["top_k"]["value"] = CONTRASTIVE_TOP_K if method == CONTRASTIVE else 0
        return [*groups, *shown.values()]

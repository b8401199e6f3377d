"""The tab that shows how much a model expected each token of a text, and what it would rather have seen."""

from typing import Any

import gradio as gr

from gpt2_jax.analysis.probabilities import token_probabilities
from gpt2_jax.analysis.token_labels import spaced
from gpt2_jax.errors import check
from gpt2_jax.page.assets import asset
from gpt2_jax.page.controls import text
from gpt2_jax.page.parts import Part, Shared
from gpt2_jax.page.running import told

LONGEST_TEXT = 8_000  # characters
ALTERNATIVES = 10
EXAMPLE = "for i in range(10):\n    print(i)\n"


class ProbabilitiesTab(Part):
    """A text, its tokens coloured, and the alternatives of the one that was clicked."""

    def __init__(self, shared: Shared, model: gr.Dropdown):
        super().__init__(shared)
        self.look = told(self._look)
        words = "The stronger the colour, the less the model expected a token. Click one for its alternatives."
        gr.Markdown(words, elem_classes="hint")
        self.text = gr.Textbox(
            EXAMPLE, label="Text", lines=4, max_lines=12, max_length=LONGEST_TEXT, elem_id="probabilities-text"
        )
        with gr.Row(elem_classes="tight"):
            button = gr.Button("Show probabilities", variant="primary", elem_id="show-probabilities")
        self.tokens = gr.HTML(
            None, html_template='<div class="look"></div>', js_on_load=asset("tokens.js"), apply_default_css=False,
            elem_id="tokens",
        )  # fmt: skip
        gr.on(
            [button.click, self.text.submit], self.look, inputs_kwargs={"model": model, "text": self.text},
            outputs=self.tokens, api_name="probabilities", preprocess=False, concurrency_id="look",
        )  # fmt: skip

    def _look(self, model: Any, text: Any) -> dict[str, Any]:
        return probabilities(self.shared, model, text)


def probabilities(shared: Shared, model: Any, given: Any) -> dict[str, Any]:
    """What the page draws: tokens with their surprisal and entropy in bits, rank, and alternatives in probabilities.

    Raises:
      InputError: no such model, or a text that is empty or too long.
    """
    lm = shared.lm(model)
    given = text("text", given, LONGEST_TEXT)
    check(bool(given), "text", given, "a text with some letters")
    found = token_probabilities(lm, given, min(ALTERNATIVES, lm.config.vocab_size))
    top = found.top_probabilities.tolist()
    return {
        "perplexity": round(found.perplexity, 2),
        "tokens": [
            {
                "label": found.labels[i],
                "text": spaced(found.texts[i]),
                "surprisal": float(found.surprisal[i]),
                "entropy": float(found.entropy[i]),
                "rank": int(found.rank[i]),
                "top": [
                    {"label": label, "probability": p, "chosen": bool(token == found.tokens[i])}
                    for label, p, token in zip(found.top_labels[i], top[i], found.top_tokens[i])
                ],
            }
            for i in range(len(found.tokens))
        ],
    }

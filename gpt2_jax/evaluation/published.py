"""What was published of GPT-2's four sizes: the figures that ours are printed beside.

Where a figure is of another protocol than its task's, `note` says so: no number here was measured by this package.
"""

import dataclasses

MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
PARAMETERS = dict(zip(MODELS, (124_439_808, 354_823_168, 774_030_080, 1_557_611_200)))
PAPER = "Radford et al., 2019, table 3"


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of figures.

    Attributes:
      task, figure: of tasks.py, what they are to be compared with.
      values: of `MODELS`; None is not published.
      source: who published them.
      note: how their protocol differs, or what others got with it.
    """

    task: str
    figure: str
    values: tuple[float | None, ...]
    source: str = PAPER
    note: str = ""

    def of(self, model: str) -> float | None:
        """The value of one of `MODELS`."""
        return self.values[MODELS.index(model)]


TABLE = (
    Published("lambada", "accuracy", (0.4599, 0.5548, 0.6012, 0.6324), note="which words it filters is not published"),
    Published(
        "lambada", "perplexity", (35.13, 15.60, 10.87, 8.63), note="of what unit is not said; here of the last word"
    ),
    Published(
        "lambada_last_token", "accuracy", (0.4667, None, None, None), "users, huggingface/transformers#13761"
    ),
    Published(
        "lambada_openai", "accuracy", (0.3256, None, None, None), "users, EleutherAI/lm-evaluation-harness#2159"
    ),
    Published(
        "lambada_openai", "perplexity", (40.06, None, None, 10.63),
        "users, EleutherAI/lm-evaluation-harness#2159 and #911",
    ),
    Published("cbt_cn", "accuracy", (0.8765, 0.9235, 0.9345, 0.9330), note="users reached 0.8435 with gpt2 (#13761)"),
    Published("cbt_ne", "accuracy", (0.8340, 0.8710, 0.8800, 0.8905), note="users reached 0.7365 with gpt2 (#13761)"),
    Published(
        "wikitext2", "token_perplexity", (29.41, 22.76, 19.93, 18.34), note="users reached 29.94 with gpt2 (#13761)"
    ),
    Published("wikitext2", "token_perplexity", (None, None, 19.44, None), "Hugging Face's guide, stride 1024"),
    Published(
        "wikitext103", "word_perplexity", (37.50, 26.37, 22.05, 17.48), note="users reached 37.37 with gpt2 (#13761)"
    ),
    Published("ptb", "word_perplexity", (65.85, 47.33, 40.31, 35.76)),
    Published("enwik8", "bits_per_byte", (1.16, 1.01, 0.97, 0.93)),
    Published("text8", "bits_per_character", (1.17, 1.06, 1.02, 0.98)),
    Published(
        "1bw", "word_perplexity", (75.20, 55.72, 44.575, 42.16),
        note="users reached 45.88 with gpt2, counting tokens (#13761)",
    ),
    Published("hellaswag", "acc", (0.2892, None, None, 0.4004), "lm-evaluation-harness, by llm.c"),
    Published("hellaswag", "acc_norm", (0.3114, None, None, 0.5089), "lm-evaluation-harness, by llm.c"),
    Published("hellaswag_llmc", "acc", (0.2859, None, None, 0.3842), "llm.c, dev/data/hellaswag.py"),
    Published("hellaswag_llmc", "acc_norm", (0.2955, None, None, 0.4893), "llm.c, dev/data/hellaswag.py"),
)  # fmt: skip


def rows(task: str) -> list[Published]:
    """Those of a task."""
    return [row for row in TABLE if row.task == task]

"""The tasks by their names: whose examples, by which protocol, with which figures."""

import dataclasses
import re
from collections.abc import Callable

from gpt2_jax.errors import InputError, suggest
from gpt2_jax.evaluation import captioning, choices, code_tasks, control, lambada, texts
from gpt2_jax.evaluation.examples import Examples, OwnFiles, Source
from gpt2_jax.evaluation.humaneval import COLUMNS, Drawing
from gpt2_jax.evaluation.outcome import Figure, Outcome, Settings
from gpt2_jax.evaluation.perplexity import Perplexity, perplexity
from gpt2_jax.evaluation.sandbox import Limits
from gpt2_jax.language_model import LanguageModel

LONGEST_LABEL = 60  # characters of it that are of the data
CONVERTED = "refs/convert/parquet"  # the hub's own copy of what a script makes


@dataclasses.dataclass(frozen=True)
class Task:
    """What an evaluation is.

    Attributes:
      name: on the command line and in reports.
      protocol: what is measured, in a sentence.
      source: of the examples.
      answer: runs it where answers are scored.
      documents: reads the texts where the perplexity is asked for: (examples, limit, detokenize) -> texts.
      detokenize: whether the text is written as people do; None: there is nothing to be undone.
      draws: whether the model writes code.
      executes: whether that is run.
    """

    name: str
    protocol: str
    source: Source | OwnFiles | captioning.CaptionedImages
    answer: Callable[[LanguageModel, Examples, Settings], Outcome] | None = None
    documents: Callable[[Examples, int | None, bool], list] | None = None
    detokenize: bool | None = None
    draws: bool = False
    executes: bool = False

    def run(self, lm: LanguageModel, data: str | None = None, settings: Settings | None = None) -> Outcome:
        """Evaluates a model.

        Args:
          lm: the model, on one device or of `logprobs.spread`.
          data: a file or folder; None is the hub.
          settings: how.

        Raises:
          InputError: the examples cannot be read, or a setting that this task has no use for.
        """
        settings = Settings() if settings is None else settings
        self._check(settings)
        detokenize = self.detokenize if settings.detokenize is None else settings.detokenize
        settings = dataclasses.replace(
            settings, detokenize=detokenize, drawing=settings.drawing or Drawing(), limits=settings.limits or Limits()
        )
        if self.answer is not None:
            return self.answer(lm, self.source.examples(data, settings.limit), settings)
        documents = self.documents(self.source.examples(data), settings.limit, bool(detokenize))
        progress = None
        if settings.progress is not None:
            progress = lambda sums, total: settings.progress(sums.tokens, total, "tokens")
        result = perplexity(
            lm, documents, context=settings.context, stride=settings.stride, batch_size=settings.batch_size,
            partial=settings.partial, progress=progress,
        )  # fmt: skip
        return outcome_of(result)

    def label(self, data: str | None) -> str:
        """The name, and of texts of one's own whose they are: of files of reports."""
        if data is None or not isinstance(self.source, OwnFiles | captioning.CaptionedImages):
            return self.name
        return f"{self.name}-{re.sub(r'[^A-Za-z0-9.]+', '_', data).strip('_')[-LONGEST_LABEL:]}"

    def _check(self, settings: Settings) -> None:
        for name in ("limit", "batch_size"):
            if (value := getattr(settings, name)) is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1")
        if self.answer is not None:
            for name in ("context", "stride"):
                if (value := getattr(settings, name)) is not None:
                    raise InputError(f"{name} is {value}, and {self.name} has no long texts; leave it out")
        for what, given, has, verb in (
            ("how to draw", settings.drawing is not None, self.draws, "draws"),
            ("leave to execute", settings.execute, self.executes, "executes"),
            ("a limit of what is executed", settings.limits is not None, self.executes, "executes"),
        ):
            if given and not has:
                raise InputError(f"{what} is given, and {self.name} {verb} nothing; leave it out")
        if self.detokenize is None and settings.detokenize is not None:
            raise InputError(
                f"detokenize is {settings.detokenize}, and the text of {self.name} is not cut into words; leave it out"
            )


def outcome_of(result: Perplexity) -> Outcome:
    """All ways of counting what a model makes of a text."""
    figures = {}
    for name, count in (
        ("token_perplexity", result.tokens),
        ("word_perplexity", result.words),
        ("word_and_line_perplexity", result.words + result.line_ends),
        ("byte_perplexity", result.bytes),
    ):
        if count:
            figures[name] = Figure(*result.per(count))
    figures["bits_per_byte"] = Figure(*result.bits_per(result.bytes))
    figures["bits_per_character"] = Figure(*result.bits_per(result.characters))
    counted = ("documents", "windows", "tokens", "words", "line_ends", "characters", "bytes")
    return Outcome(figures, {name: getattr(result, name) for name in counted})


_LAMBADA = Source(("text",), "EleutherAI/lambada_openai", plain=texts.lines("text"))
_HELLASWAG = ("activity_label", "ctx_a", "ctx_b", "endings", "label")
_CBT = ("sentences", "question", "answer", "options")
_ENWIK8 = Source(
    ("text",), plain=texts.whole,
    advice="unpack enwik8.zip of http://mattmahoney.net/dc/textdata.html and give the file (--data=enwik8)",
)  # fmt: skip

TASKS = {task.name: task for task in (
    Task("perplexity", "the perplexity of texts of your own", OwnFiles(), documents=texts.each),
    Task(
        "lambada", "the last word of a passage, the most probable one that is no stop word, as in the GPT-2 paper",
        _LAMBADA, answer=lambada.stop_word_filter,
    ),
    Task(
        "lambada_last_token", "the last token of a passage after all others, as OpenAI and its reproducers count",
        _LAMBADA, answer=lambada.last_token,
    ),
    Task(
        "lambada_openai", "the last word of a passage, all its tokens greedily, as in lm-evaluation-harness",
        _LAMBADA, answer=lambada.last_word,
    ),
    Task(
        "wikitext2", "WikiText-2's test set as one text, counted in the model's tokens, as in Hugging Face's guide",
        Source(("text",), "Salesforce/wikitext", "wikitext-2-raw-v1", plain=texts.wikitext_lines),
        documents=texts.wikitext_whole, detokenize=False,
    ),
    Task(
        "wikitext103", "the same test set, article by article and detokenized, counted in the words of the original",
        Source(("text",), "Salesforce/wikitext", "wikitext-103-raw-v1", plain=texts.wikitext_lines),
        documents=texts.wikitext_articles, detokenize=True,
    ),
    Task(
        "ptb", "Mikolov's Penn Treebank as one text, detokenized, counted in the words of the original",
        Source(("sentence",), "ptb-text-only/ptb_text_only", revision=CONVERTED, plain=texts.lines("sentence")),
        documents=texts.penn_treebank, detokenize=True,
    ),
    Task(
        "enwik8", "the last 5 MB of enwik8, bits for each byte", _ENWIK8, documents=texts.last_bytes,
    ),
    Task(
        "text8", "the last 5 MB of text8, bits for each character",
        Source(("text",), "afmck/text8", plain=texts.whole), documents=texts.last_bytes,
    ),
    Task(
        "1bw", "the 1 Billion Word benchmark, each sentence alone, detokenized, counted in the words of the original",
        Source(("text",), "billion-word-benchmark/lm1b", revision=CONVERTED, plain=texts.lines("text")),
        documents=texts.one_billion_words, detokenize=True,
    ),
    Task(
        "cbt_cn", "Children's Book Test, common nouns: which of ten words, by the rest of the sentence",
        Source(_CBT, "cam-cst/cbt", "CN", plain=choices.cbt_file), answer=choices.childrens_books, detokenize=True,
    ),
    Task(
        "cbt_ne", "Children's Book Test, named entities, likewise",
        Source(_CBT, "cam-cst/cbt", "NE", plain=choices.cbt_file), answer=choices.childrens_books, detokenize=True,
    ),
    Task(
        "control", "whether samples of each control code are taken for that kind by a judge of real texts",
        Source(("text", "code"), advice="give real texts of each code, .jsonl of text and code (--data=texts.jsonl)"),
        answer=control.accuracy_of_codes,
    ),
    Task(
        "captions", "whether greedy captions of images that were held out are theirs, word for word",
        captioning.CaptionedImages(), answer=captioning.exact_match,
    ),
    Task(
        "hellaswag", "which of four endings of a paragraph, as in lm-evaluation-harness",
        Source(_HELLASWAG, "Rowan/hellaswag", split="validation", revision=CONVERTED), answer=choices.hellaswag,
    ),
    Task(
        "hellaswag_llmc", "which of four endings of a paragraph, as in llm.c",
        Source(("ctx", "endings", "label"), "Rowan/hellaswag", split="validation", revision=CONVERTED),
        answer=choices.hellaswag_llmc,
    ),
    Task(
        "humaneval", "functions of Python that pass their tests, executed with --execute alone, as in the Codex paper",
        Source(COLUMNS, "openai/openai_humaneval"), answer=code_tasks.humaneval, draws=True, executes=True,
    ),
    Task(
        "syntax", "code continued to the end of its block, which parses or not",
        Source(("prompt",), "openai/openai_humaneval"), answer=code_tasks.syntax, draws=True,
    ),
)}  # fmt: skip


def find(name: str) -> Task:
    """The task of that name.

    Raises:
      InputError: there is none, with the nearest.
    """
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}; {suggest(name, [*TASKS, 'table'])}")
    return TASKS[name]

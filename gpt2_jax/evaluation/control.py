"""Whether a control controls: samples under it, the kinds that a judge finds them to be, and what else it changes."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpt2_jax.analysis import quality
from gpt2_jax.errors import InputError
from gpt2_jax.evaluation.examples import Examples, text_of
from gpt2_jax.evaluation.judges import Judge, NaiveBayes
from gpt2_jax.evaluation.outcome import Outcome, Settings, share
from gpt2_jax.generation.request import HEAD
from gpt2_jax.language_model import Generation, LanguageModel
from gpt2_jax.mixing import mix

HELD_OUT = 5  # every so manieth real text tests the judge
TEXTS, TOKENS = 128, 64  # of the task: samples of each code, and new tokens of each, at most
COSTS = ("perplexity", "distinct_2", "repetition_4", "tokens")  # of `quality.measure`


@dataclasses.dataclass(frozen=True)
class Row:
    """What was found under one setting.

    Attributes:
      setting: such as {"guidance_scale": 2.0} or {"alpha": 2.0}.
      kinds: how many texts of each control code, or of "" without codes, are of each kind.
      metrics: of `quality.measure`, over all texts, such as diversity; the perplexity is that under the model without
        guidance or experts.
    """

    setting: Mapping[str, float]
    kinds: Mapping[str, Mapping[str, int]]
    metrics: Mapping[str, float | None]

    def share(self, code: str, kind: str) -> float:
        """The share of the texts of a code that are of a kind."""
        of_code = self.kinds[code]
        return of_code.get(kind, 0) / sum(of_code.values())

    @property
    def accuracy(self) -> float:
        """The share of all texts that are of the kind of their code."""
        right = sum(of_code.get(code, 0) for code, of_code in self.kinds.items())
        return right / sum(sum(of_code.values()) for of_code in self.kinds.values())


def guidance_curve(
    lm: LanguageModel,
    judge: Judge,
    *,
    codes: Sequence[str] = (),
    scales: Sequence[float] = (1.0,),
    prompts: Sequence[str] = ("",),
    samples: int = 32,
    **options: Any,
) -> Iterator[Row]:
    """Samples of each control code at each `guidance_scale`; 1 is the code alone.

    Args:
      lm: a model with control codes.
      judge: its kinds have the names of the codes.
      codes: which; by default all that the tokenizer has.
      scales, prompts: as in `generate`.
      samples: of each code, prompt and scale.
      **options: of `generate`.

    Raises:
      InputError: a model without codes, or an option that `generate` refuses.
    """
    codes = list(codes) or list(lm.tokenizer.control_codes)
    if not codes:
        raise InputError("this model's tokenizer has no control codes: train with --config.data.control_codes=True")
    for scale in scales:
        texts = {}
        for code in codes:
            texts[code] = _sample(lm, prompts, samples, control=code, guidance_scale=scale, **options)
        yield _row({"guidance_scale": scale}, texts, judge)


def expert_curve(
    base: LanguageModel,
    judge: Judge,
    *,
    expert: LanguageModel | None = None,
    anti_expert: LanguageModel | None = None,
    alphas: Sequence[float] = (0.0, 1.0, 2.0),
    prompts: Sequence[str] = ("",),
    samples: int = 32,
    **options: Any,
) -> Iterator[Row]:
    """Samples of `mix(base, expert=..., anti_expert=...)` at each alpha; 0 is the base model.

    Other arguments and errors are those of `guidance_curve` and `mix`.
    """
    for alpha in alphas:
        mixed = mix(base, expert=expert, anti_expert=anti_expert, alpha=alpha)
        drawn = _sample(mixed, prompts, samples, **options)
        row = _row({"alpha": alpha}, {"": drawn}, judge)
        texts = [text.completion for group in drawn for text in group]
        before = [prompt for prompt in prompts for _ in range(samples)]
        metrics = {**row.metrics, "perplexity": quality.judged_perplexity(base, before, texts)}
        yield dataclasses.replace(row, metrics=metrics)


def judge_of_references(references: Mapping[str, Sequence[str]]) -> tuple[Judge, Row]:
    """A judge made of real texts of each kind, and how well it tells others of them: the most that samples can reach.

    Every fifth text of a kind is held out for the second.

    Raises:
      InputError: fewer than two kinds, or one of fewer than five texts.
    """
    for kind, texts in references.items():
        if len(texts) < HELD_OUT:
            raise InputError(f"there are {len(texts)} texts of {kind!r}; give at least {HELD_OUT}, one in five tests")
    judge = NaiveBayes({kind: [t for i, t in enumerate(of) if i % HELD_OUT] for kind, of in references.items()})
    return judge, Row({}, {kind: _count(judge(of[::HELD_OUT])) for kind, of in references.items()}, {})


def accuracy_of_codes(lm: LanguageModel, examples: Examples, settings: Settings) -> Outcome:
    """The task of evaluate.py: the kinds of `TEXTS` samples of each code, drawn from the model as it is.

    Args:
      lm: a model with control codes.
      examples: real texts of each, their "text" and their "code", on which the judge learns; see `judge_of_references`.
      settings: `batch_size` samples are drawn at a time.

    Raises:
      InputError: texts of a code that the model has not, of fewer than two codes, or fewer than five of one.
    """
    references: dict[str, list[str]] = {}
    for where, example in examples:
        references.setdefault(text_of(where, example, "code"), []).append(text_of(where, example, "text"))
    judge, real = judge_of_references(references)
    kinds, tokens, length = {}, 0, min(TOKENS, lm.config.n_positions - HEAD)
    for number, code in enumerate(references):
        found: list[str] = []
        while len(found) < TEXTS:
            texts = lm.generate(
                [""] * min(settings.batch_size, TEXTS - len(found)), control=code, max_new_tokens=length,
                seed=range(len(found), min(len(found) + settings.batch_size, TEXTS)),
            )  # fmt: skip
            found += judge([text.completion for text in texts])
            tokens += sum(len(text.tokens) for text in texts)
            if settings.progress is not None:
                settings.progress(number * TEXTS + len(found), TEXTS * len(references), "samples")
        kinds[code] = found
    figures = {"accuracy": share([kind == code for code, found in kinds.items() for kind in found])}
    for code, found in kinds.items():
        figures[f"accuracy_of_{code}"] = share([kind == code for kind in found])
    right = [kind == code for code, of in real.kinds.items() for kind, n in of.items() for _ in range(n)]
    figures["accuracy_of_the_judge"] = share(right)
    return Outcome(figures, {"samples": TEXTS * len(references), "tokens": tokens, "real_texts": len(right)})


def table(rows: Sequence[Row]) -> str:
    """Rows of the same codes in Markdown: with codes the accuracy of each, else the shares of kinds; then the costs."""
    codes = list(rows[0].kinds)
    coded = codes != [""]
    names = codes if coded else sorted({kind for row in rows for kind in row.kinds[""]} - {""})
    kinds = [f"{name}{' (accuracy)' if coded else ''}" for name in names]
    costs = quality.columns([{name: row.metrics.get(name) for name in COSTS} for row in rows])
    lines = [[*rows[0].setting, "texts", *kinds, *["all"] * coded, *costs]]
    lines.append(["---:"] * len(lines[0]))
    for row in rows:
        shares = [row.share(name if coded else "", name) for name in names] + [row.accuracy] * coded
        number = sum(sum(of_code.values()) for of_code in row.kinds.values())
        figures = [format(row.metrics[name], quality.FORMATS[name]) for name in costs]
        lines.append([*(f"{x:g}" for x in row.setting.values()), f"{number}", *(f"{x:.1%}" for x in shares), *figures])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _sample(lm: LanguageModel, prompts: Sequence[str], samples: int, **options: Any) -> list[list[Generation]]:
    drawn = lm.generate(list(prompts), num_return_sequences=samples, logprobs=0, **options)
    return [drawn[i : i + samples] for i in range(0, len(drawn), samples)]


def _row(setting: Mapping[str, float], texts: Mapping[str, Sequence[Sequence[Generation]]], judge: Judge) -> Row:
    kinds = {code: _count(judge([text.completion for group in of for text in group])) for code, of in texts.items()}
    return Row(setting, kinds, quality.measure([group for of in texts.values() for group in of]))


def _count(kinds: Sequence[str]) -> dict[str, int]:
    return {kind: list(kinds).count(kind) for kind in sorted(set(kinds))}

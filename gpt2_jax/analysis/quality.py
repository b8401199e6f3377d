"""The figures of many completions of the same prompts, and their table."""

import csv
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np

from gpt2_jax.analysis import diversity
from gpt2_jax.analysis.mauve import features, mauve
from gpt2_jax.errors import InputError
from gpt2_jax.evaluation.scoring import score
from gpt2_jax.language_model import Generation, LanguageModel

Metrics = dict[str, float | None]
# The figures, as a table writes them.
FORMATS = {
    "perplexity": ".2f", "judged_perplexity": ".2f", "distinct_1": ".3f", "distinct_2": ".3f", "self_bleu": ".3f",
    "repetition_4": ".3f", "zipf": ".2f", "mauve": ".3f", "tokens": ".1f", "ended": ".2f",
}  # fmt: skip


def measure(completions: Sequence[Sequence[Generation]]) -> Metrics:
    """The figures that need no other model, of completions grouped by prompt and made with `logprobs`.

    Words are those of `diversity.words`; what cannot be computed, as self-BLEU of one sample a prompt, is None.

    Returns:
      perplexity: a token, of all new tokens under the model itself, before any control.
      distinct_1, distinct_2: of the words of all completions.
      self_bleu: of the words of each prompt's completions, mean over the prompts.
      repetition_4: seq-rep-4 of new tokens.
      zipf: the coefficient of the words of all completions.
      tokens: new tokens a completion, mean.
      ended: share of completions that an end token or a stop string ended.
    """
    everything = [completion for group in completions for completion in group]
    logprobs = np.concatenate([completion.logprobs for completion in everything]).astype(np.float64)
    new_tokens = [completion.tokens[len(completion.tokens) - len(completion.logprobs) :] for completion in everything]
    by_prompt = [[text for c in group if (text := diversity.words(c.completion))] for group in completions]
    texts = [text for group in by_prompt for text in group]
    bleus = [diversity.self_bleu(group) for group in by_prompt if len(group) > 1]
    return {
        "perplexity": math.exp(-logprobs.mean()) if len(logprobs) else None,
        "distinct_1": _or_none(diversity.distinct, texts, 1),
        "distinct_2": _or_none(diversity.distinct, texts, 2),
        "self_bleu": float(np.mean(bleus)) if bleus else None,
        "repetition_4": _or_none(diversity.repetition, [ids.tolist() for ids in new_tokens], 4),
        "zipf": _or_none(diversity.zipf_coefficient, texts),
        "tokens": float(np.mean([len(ids) for ids in new_tokens])),
        "ended": float(np.mean([completion.stop_reason in ("end_token", "stop_string") for completion in everything])),
    }


def judged_perplexity(judge: LanguageModel, prompts: Sequence[str], completions: Sequence[str]) -> float | None:
    """The perplexity a token of completions under another model, each after its prompt; None if all are empty.

    A completion longer than half of the judge's context is scored in such parts, each after what is before it.
    """
    half = max(1, judge.config.n_positions // 2)
    pairs = []
    for before, after in zip(judge.tokenizer.encode_batch(prompts), judge.tokenizer.encode_batch(completions)):
        ids = before + after
        cuts = range(len(before), len(ids), half)
        pairs += [(ids[max(0, cut - half) : cut], ids[cut : cut + half]) for cut in cuts]
    if not pairs:
        return None
    logprobs = np.concatenate([scored.logprobs for scored in score(judge, pairs)])
    return math.exp(-logprobs.mean(dtype=np.float64))


def mauve_score(lm: LanguageModel, completions: Sequence[str], references: Sequence[str]) -> float | None:
    """MAUVE of completions against texts of people, by `lm`'s features; None if fewer than two are not empty."""
    texts, others = ([text for text in texts if text] for texts in (completions, references))
    if min(len(texts), len(others)) < 2:
        return None
    return mauve(features(lm, texts), features(lm, others)).score


def columns(metrics: Sequence[Mapping[str, float | None]]) -> list[str]:
    """The figures that at least one of the rows has, in the order of `FORMATS`."""
    return [name for name in FORMATS if any(row.get(name) is not None for row in metrics)]


def markdown(rows: Mapping[str, Mapping[str, float | None]]) -> str:
    """A table of {name: metrics}; a figure that is None is empty."""
    names = columns(list(rows.values()))
    text = lambda row, name: "" if row.get(name) is None else format(row[name], FORMATS[name])
    lines = [["setting", *names], ["---", *["---:"] * len(names)]]
    lines += [[title, *(text(row, name) for name in names)] for title, row in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def comma_separated(rows: Sequence[Mapping[str, float | str | None]]) -> str:
    """CSV of rows that have the same keys, which are its first line; None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _or_none(figure, *arguments) -> float | None:
    try:
        return figure(*arguments)
    except InputError:  # texts too short for it
        return None

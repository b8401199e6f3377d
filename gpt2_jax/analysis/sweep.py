"""A sweep over ways to draw: the same prompts and seeds under many settings, measured and kept.

A setting is a file of its own, complete or not there, so a sweep that was stopped goes on where it was. Settings of
one length share their compiled programs: numbers are traced, and every batch has the same rows.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from gpt2_jax import json_files, whole_files
from gpt2_jax.analysis import quality
from gpt2_jax.errors import InputError, check, shown
from gpt2_jax.fingerprint import fingerprint
from gpt2_jax.generation import batches
from gpt2_jax.generation.options import option
from gpt2_jax.language_model import Generation, LanguageModel

Setting = dict[str, float]
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}  # what each factor is when off
FACTORS = (*PLAIN, "max_new_tokens")
LARGEST_FILE = 1 << 30  # bytes of a setting's samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is varied and how much is drawn.

    Raises:
      InputError: an empty list, a value twice, or a number out of range.
    """

    temperature: Sequence[float] = option((0.1, 0.7, 1.0, 1.5), "Temperatures, above 0.")
    top_k: Sequence[int] = option((10, 40, 100), "Draw among the k most probable tokens; 0 is off.")
    top_p: Sequence[float] = option((0.8, 0.9, 0.95), "Draw among the fewest tokens of this probability; 1 is off.")
    repetition_penalty: Sequence[float] = option((1.0, 1.1, 1.2), "Divides the odds of tokens in the text; 1 is off.")
    max_new_tokens: Sequence[int] = option((50, 200, 500), "Lengths of completions, in tokens.")
    grid: bool = option(False, "All combinations; otherwise one factor at a time, the others off, at the first length.")
    samples: int = option(4, "Completions of each prompt, of seeds that follow each other.")
    seed: int = option(0, "The first seed.")
    batch_size: int = option(16, "Completions drawn at once.")
    beyond_context: Literal["slide", "skip"] = option(
        "slide", 'A length beyond the model\'s context: "slide" goes on from the later half, "skip" leaves it out.'
    )

    def __post_init__(self):
        for factor in FACTORS:
            values = getattr(self, factor)
            check(len(values) > 0, factor, values, "a list of at least one value")
            check(len(set(values)) == len(values), factor, values, "a list of different values")
        warm = all(value > 0 for value in self.temperature)
        check(warm, "temperature", self.temperature, "above 0: greedy decoding has one text and draws nothing")
        for name in ("samples", "batch_size"):
            value = getattr(self, name)
            check(type(value) is int and value >= 1, name, value, "a whole number, at least 1")
        known = self.beyond_context in ("slide", "skip")
        check(known, "beyond_context", self.beyond_context, "'slide' or 'skip'")

    def settings(self) -> list[Setting]:
        """Those to run; by length, so that what is compiled for one serves the next."""
        if self.grid:
            found = [dict(zip(FACTORS, values)) for values in itertools.product(*(getattr(self, f) for f in FACTORS))]
        else:
            plain = PLAIN | {"max_new_tokens": self.max_new_tokens[0]}
            varied = [plain | {factor: value} for factor in FACTORS for value in getattr(self, factor)]
            found = [plain, *(setting for setting in varied if setting != plain)]
        return sorted(found, key=lambda setting: setting["max_new_tokens"])


@dataclasses.dataclass(frozen=True)
class Result:
    """A setting and what it gave.

    Attributes:
      name: what differs from plain sampling, and the length.
      setting: its options of `generate`.
      slid: whether some text may outgrow the model's context, and goes on from its later half.
      metrics: `quality.measure`, with judged_perplexity and mauve where they were asked for.
      samples: dicts of prompt, seed, completion, tokens (how many are new), stop_reason, logprob (their mean).
    """

    name: str
    setting: Setting
    slid: bool
    metrics: quality.Metrics
    samples: list[dict[str, Any]]

    @property
    def title(self) -> str:
        """The name, and that it slid, in a table."""
        return self.name + " (slides)" * self.slid


def run(
    lm: LanguageModel,
    prompts: Sequence[str],
    sweep: Sweep,
    folder: Path,
    *,
    judge: LanguageModel | None = None,
    references: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> list[Result]:
    """Runs the settings that `folder` does not have yet, and writes the tables of all.

    Args:
      lm: the model.
      prompts: texts to continue.
      sweep: the settings.
      folder: for settings/*.json, table.md, table.csv and results.json (all settings with all samples).
      judge: another model, whose perplexity of the completions is a figure more.
      references: texts of people, cut to each setting's length, to compare the completions with (MAUVE).
      tell: takes a line for each setting.

    Raises:
      InputError: no prompts, a prompt or option that the model cannot take, or a folder of another sweep.
    """
    check(len(prompts) > 0, "the number of prompts", 0, "at least 1")
    settings = _that_fit(lm, prompts, sweep, tell)
    _claim(folder, lm, prompts, sweep, judge, references)
    results = []
    for number, (setting, slid) in enumerate(settings, 1):
        name = name_of(setting)
        file = folder / "settings" / f"{name.replace(' ', '_')}.json"
        if found := json_files.find(file, LARGEST_FILE):
            result, done = Result(**found), "done before"
        else:
            drawn = _draw(lm, prompts, sweep, setting)
            metrics = _measure(lm, judge, prompts, drawn, references, setting["max_new_tokens"])
            result = Result(name, setting, slid, metrics, _samples(prompts, sweep, drawn))
            _write(file, json.dumps(dataclasses.asdict(result), ensure_ascii=False))
            done = ", ".join(f"{key} {metrics[key]:.3g}" for key in ("perplexity", "distinct_2") if metrics[key])
        results.append(result)
        tell(f"{number}/{len(settings)} {name}{' (slides)' if slid else ''}: {done}")
    rows = {result.title: result.metrics for result in results}
    _write(folder / "table.md", quality.markdown(rows))
    _write(folder / "table.csv", quality.comma_separated([r.setting | {"slid": r.slid} | r.metrics for r in results]))
    _write(folder / "results.json", json.dumps([dataclasses.asdict(r) for r in results], ensure_ascii=False, indent=1))
    return results


def read(folder: Path) -> list[Result]:
    """The settings that a sweep has done, also one that was stopped; by length and factors.

    Raises:
      InputError: there are none, or a file that is none.
    """
    files = sorted(folder.glob("settings/*.json"))
    if not files:
        raise InputError(f"{folder} has no settings/*.json; give the folder that scripts/sweep.py wrote")
    what, advice = "is no setting of a sweep", "remove it, and let scripts/sweep.py draw it again"
    found = []
    for file in files:
        values = json_files.read(file, what, advice, LARGEST_FILE)
        if not _is_result(values):
            raise InputError(f"{file} {what} ({shown(sorted(values))}); {advice}")
        found.append(Result(**values))
    return sorted(found, key=lambda result: [result.setting[factor] for factor in reversed(FACTORS)])


def _is_result(values: dict[str, Any]) -> bool:
    """Whether an object in a file has what a `Result` has."""
    if values.keys() != {field.name for field in dataclasses.fields(Result)} or type(values["name"]) is not str:
        return False
    setting, metrics, samples = values["setting"], values["metrics"], values["samples"]
    return (
        isinstance(setting, dict)
        and setting.keys() == set(FACTORS)
        and all(type(value) in (int, float) for value in setting.values())
        and isinstance(metrics, dict)
        and all(value is None or type(value) in (int, float) for value in metrics.values())
        and isinstance(samples, list)
        and all(isinstance(sample, dict) for sample in samples)
    )


def name_of(setting: Setting) -> str:
    """What differs from plain sampling, and the length: "temperature=0.7 max_new_tokens=50"."""
    return " ".join(f"{factor}={value:g}" for factor, value in setting.items() if value != PLAIN.get(factor))


def _that_fit(
    lm: LanguageModel, prompts: Sequence[str], sweep: Sweep, tell: Callable[[str], None]
) -> list[tuple[Setting, bool]]:
    """The settings to run, each with whether it outgrows the context."""
    context, longest = lm.config.n_positions, max(1, *map(len, lm.tokenizer.encode_batch(prompts)))
    found = [(setting, longest + setting["max_new_tokens"] > context) for setting in sweep.settings()]
    if sweep.beyond_context == "slide":
        return found
    fit = [(setting, slides) for setting, slides in found if not slides]
    if not fit:
        raise InputError(
            f"no setting fits the model's context of {context} tokens after the longest prompt, of {longest}; ask for "
            "a shorter max_new_tokens, or let it slide (beyond_context='slide')"
        )
    if left_out := sorted({setting["max_new_tokens"] for setting, slides in found if slides}):
        tell(f"left out: {len(found) - len(fit)} settings of {left_out} tokens, for the context is {context}")
    return fit


def _draw(lm: LanguageModel, prompts: Sequence[str], sweep: Sweep, setting: Setting) -> list[list[Generation]]:
    """Each prompt's completions."""
    rows = [(prompt, sweep.seed + i) for prompt in prompts for i in range(sweep.samples)]
    drawn = list(batches.generate(lm, rows, sweep.batch_size, logprobs=0, beyond_context="slide", **setting))
    return [drawn[i : i + sweep.samples] for i in range(0, len(drawn), sweep.samples)]


def _measure(
    lm: LanguageModel,
    judge: LanguageModel | None,
    prompts: Sequence[str],
    drawn: Sequence[Sequence[Generation]],
    references: Sequence[str],
    length: int,
) -> quality.Metrics:
    texts = [completion.completion for group in drawn for completion in group]
    metrics = quality.measure(drawn)
    if judge is not None:
        each = [prompt for prompt, group in zip(prompts, drawn) for _ in group]
        metrics["judged_perplexity"] = quality.judged_perplexity(judge, each, texts)
    if references:
        cut = [lm.tokenizer.decode(ids[:length]) for ids in lm.tokenizer.encode_batch(references)]
        metrics["mauve"] = quality.mauve_score(lm, texts, cut)
    return metrics


def _samples(prompts: Sequence[str], sweep: Sweep, drawn: Sequence[Sequence[Generation]]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": prompt,
            "seed": sweep.seed + i,
            "completion": completion.completion,
            "tokens": len(completion.logprobs),
            "stop_reason": completion.stop_reason,
            "logprob": float(completion.logprobs.mean()) if len(completion.logprobs) else None,
        }
        for prompt, group in zip(prompts, drawn)
        for i, completion in enumerate(group)
    ]


def _claim(
    folder: Path,
    lm: LanguageModel,
    prompts: Sequence[str],
    sweep: Sweep,
    judge: LanguageModel | None,
    references: Sequence[str],
) -> None:
    """Notes in `folder` what must stay the same from setting to setting, or compares it with what is noted there."""
    mine = {
        "model": fingerprint(lm.model),
        "judge": judge and fingerprint(judge.model),
        "prompts": list(prompts),
        "references": hashlib.sha256(json.dumps(list(references)).encode()).hexdigest() if references else None,
        "samples": sweep.samples,
        "seed": sweep.seed,
    }
    file = folder / "sweep.json"
    if not os.path.lexists(file):
        _write(file, json.dumps(mine, ensure_ascii=False, indent=1))
        return
    noted = json_files.read(file, "cannot be read", "give another folder for this sweep", LARGEST_FILE)
    if other := [name for name, value in mine.items() if noted.get(name) != value]:
        raise InputError(
            f"{folder} has a sweep with another value of {', '.join(other)}; its settings cannot be compared with "
            "these: give another folder, or remove it"
        )


def _write(file: Path, text: str) -> None:
    """All of it or nothing."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        whole_files.write(file, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise InputError(
            f"{file} cannot be written ({error.strerror}); make room and run again: settings that are done are kept"
        ) from None

"""Reports: a JSON and a Markdown file of each evaluation, and the table of all beside what was published."""

import json
import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from gpt2_jax import json_files
from gpt2_jax.errors import InputError
from gpt2_jax.evaluation import published
from gpt2_jax.evaluation.outcome import Figure, Outcome
from gpt2_jax.evaluation.tasks import TASKS, Task
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.model import num_parameters

FORMAT = 1
NOT_RUN = "expected, not run here"
SHARES = ("acc", "exact_match", "pass@", "valid", "any_valid")  # what begins so is in percent where people read it
_NUMBERS = (int, float, type(None))
LIBRARIES = ("gpt2_jax", "jax", "jaxlib", "flax", "numpy", "tokenizers", "datasets")


def describe(lm: LanguageModel, path: str, step: int | str | None, revision: str | None) -> dict[str, Any]:
    """What a report says of a model that was loaded so: of a run, the number of the step."""
    if (Path(path).expanduser() / "checkpoints").is_dir():
        from gpt2_jax.training.checkpoint import Checkpoints  # as in pretrained.py

        with Checkpoints(Path(path).expanduser()) as checkpoints:
            step = checkpoints.find(step)
    sizes = {name: getattr(lm.config, name) for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")}
    return {
        "path": path, "step": step, "revision": revision, "parameters": num_parameters(lm.model), **sizes,
        "dtype": lm.config.dtype,
    }  # fmt: skip


def make(
    task: Task, outcome: Outcome, model: dict[str, Any], options: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """A report, of what JSON has: a number that is not finite is null."""
    devices = jax.local_devices()
    return {
        "format": FORMAT,
        "task": task.name,
        "protocol": task.protocol,
        "model": model,
        "options": options,
        "figures": {name: _of_figure(figure) for name, figure in outcome.figures.items()},
        "counts": outcome.counts,
        "published": [
            {"figure": row.figure, "source": row.source, "note": row.note} | dict(zip(published.MODELS, row.values))
            for row in published.rows(task.name)
        ],
        "seconds": round(seconds, 3),
        "device": devices[0].device_kind,
        "versions": {name: _version(name) for name in LIBRARIES},
    }


def write(folder: Path, report: dict[str, Any]) -> list[Path]:
    """Writes `report` into a folder, made if absent, over the one of the same task and model.

    Raises:
      InputError: the folder cannot be written to.
    """
    name = folder / stem(TASKS[report["task"]].label(report["options"].get("data")), report["model"])
    texts = {".json": json.dumps(report, indent=2, allow_nan=False) + "\n", ".md": markdown(report)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            name.with_name(name.name + suffix).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{error.filename or folder} cannot be written ({error.strerror}); give another folder"
        ) from None
    return [name.with_name(name.name + suffix) for suffix in texts]


def stem(task: str, model: dict[str, Any]) -> str:
    """The name of a report's files without their suffix."""
    return f"{task}-{name_of(model)}"


def name_of(model: dict[str, Any]) -> str:
    """A model's in the names of files and columns: the end of its path, and the step."""
    at = "" if model["step"] is None else f"-{model['step']}"
    path = Path(model["path"]).expanduser()
    whole = str(path.resolve()) if path.exists() else model["path"]
    return f"{'_'.join(whole.strip('/').split('/')[-2:])}{at}"


def lines(report: dict[str, Any]) -> list[str]:
    """What the terminal shows of a report: each figure, and beside it those published of the four sizes."""
    shown = [f"{report['task']}: {report['protocol']}"]
    for name, figure in report["figures"].items():
        rows = [row for row in published.rows(report["task"]) if row.figure == name]
        own = f"  {name:26}{_shown(name, figure['value'])} ± {_shown(name, figure['standard_error'])}"
        shown.append(own)
        shown += [
            f"{'':28}published: {_published(row)} ({row.source}{'; ' * bool(row.note)}{row.note})" for row in rows
        ]
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in report["counts"].items())
    shown.append(f"  {counts}; {report['seconds']:.1f} s on {report['device']}")
    return shown


def markdown(report: dict[str, Any]) -> str:
    """A report for people."""
    model = report["model"]
    at = f", step {model['step']}" * (model["step"] is not None) + f", revision {model['revision']}" * bool(
        model["revision"]
    )
    rows = [
        f"# {report['task']}", "", f"{report['protocol'].capitalize()}.", "",
        f"Model: `{model['path']}`{at}, {model['parameters']:,} parameters, {model['dtype']}.", "",
        f"| figure | value | standard error | {' | '.join(published.MODELS)} |", f"| --- {'| --- ' * 6}|",
    ]  # fmt: skip
    for name, figure in report["figures"].items():
        found = [row for row in published.rows(report["task"]) if row.figure == name] or [None]
        for row in found:
            others = ["" if row is None else _shown(name, value, "") for value in (row.values if row else (None,) * 4)]
            own = f"{_shown(name, figure['value'])} | {_shown(name, figure['standard_error'])}"
            rows.append(f"| {name} | {own} | {' | '.join(others)} |")
    sources = [
        f"{row.figure}: {row.source}{'; ' * bool(row.note)}{row.note}." for row in published.rows(report["task"])
    ]
    rows += ["", f"The sizes' columns are published figures, {NOT_RUN}. {' '.join(sources)}", ""] if sources else [""]
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in report["counts"].items())
    options = ", ".join(f"{name} {value}" for name, value in report["options"].items() if value is not None)
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items() if number)
    rows += [f"{counts}. {options}. {report['seconds']:.1f} s on {report['device']}. {versions}.", ""]
    return "\n".join(rows)


def read(path: Path) -> list[dict[str, Any]]:
    """The report in a file, or those in a folder by their names, whose other files are passed over.

    Raises:
      InputError: a report that is damaged, or a file that is none.
    """
    reports, advice = [], "give what scripts/evaluate.py wrote, or evaluate again"
    for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
        report = json_files.read(file, "is no report of an evaluation", advice)
        ours = report.get("format") == FORMAT and report.get("task") in list(TASKS)
        if ours and _is_whole(report):
            reports.append(report)
        elif ours or file == path:
            what = "a damaged report" if ours else "no report of an evaluation"
            raise InputError(f"{file} is {what}; {advice}")
    return reports


def table(reports: list[dict[str, Any]]) -> list[str]:
    """All tasks in Markdown: what was published of the four sizes, and beside it the reports' models."""
    models = {name_of(report["model"]): None for report in reports}
    rows = [
        f"| task | figure | {' | '.join((*published.MODELS, *models))} |",
        f"| --- | --- {'| --- ' * (len(published.MODELS) + len(models))}|",
    ]
    for row in published.TABLE:
        own = []
        for model in models:
            found = [r for r in reports if r["task"] == row.task and name_of(r["model"]) == model]
            figure = found[-1]["figures"].get(row.figure) if found else None
            own.append("" if figure is None else _shown(row.figure, figure["value"]))
        values = [_shown(row.figure, value, "") for value in row.values]
        rows.append(f"| {row.task} | {row.figure} | {' | '.join([*values, *own])} |")
    rows += ["", f"Figures of {', '.join(published.MODELS)} are published ones: {NOT_RUN}."]
    sources: dict[str, list[str]] = {}
    for row in published.TABLE:
        note = f"{row.task} {row.figure}" + f" ({row.note})" * bool(row.note)
        sources.setdefault(row.source, []).append(note)
    return rows + [f"{source}: {'; '.join(notes)}." for source, notes in sources.items()]


def _is_whole(report: dict[str, Any]) -> bool:
    """Whether all that people are shown of a report is there, and is what it should be."""
    kinds = {"protocol": str, "figures": dict, "counts": dict, "model": dict, "seconds": (int, float), "device": str}
    if not all(isinstance(report.get(name), kind) for name, kind in kinds.items()):
        return False
    figure = lambda x: isinstance(x, dict) and all(type(x.get(k)) in _NUMBERS for k in ("value", "standard_error"))
    return (
        all(map(figure, report["figures"].values()))
        and all(type(count) is int for count in report["counts"].values())
        and isinstance(report["model"].get("path"), str)
        and isinstance(report["model"].get("step"), int | None)
    )


def _of_figure(figure: Figure) -> dict[str, float | None]:
    finite = lambda x: x if math.isfinite(x) else None
    return {"value": finite(figure.value), "standard_error": finite(figure.error)}


def _shown(name: str, value: float | None, none: str = "none") -> str:
    if value is None:
        return none
    return f"{100 * value:.2f} %" if name.startswith(SHARES) else f"{value:,.4g}" if value < 10 else f"{value:,.2f}"


def _published(row: published.Published) -> str:
    return ", ".join(
        f"{model} {_shown(row.figure, value)}"
        for model, value in zip(published.MODELS, row.values)
        if value is not None
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

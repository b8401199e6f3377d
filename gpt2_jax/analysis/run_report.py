"""A report of a training run: one HTML page that needs no other file, no script and no network.

A section that cannot be made says why, and the others are made all the same.
"""

import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from markupsafe import Markup

from gpt2_jax import pretrained
from gpt2_jax.analysis import pages
from gpt2_jax.analysis import report_sections as sections
from gpt2_jax.analysis.run_folder import RunFolder
from gpt2_jax.errors import InputError, check
from gpt2_jax.evaluation import report as evaluation_report

SECTIONS: dict[str, Callable[[sections.Material], str]] = {
    "Overview": sections.overview,
    "Configuration": sections.configuration,
    "Parameters": sections.parameters,
    "Training curves": sections.training_curves,
    "Samples over time": sections.samples_over_time,
    "Attention": sections.attention,
    "Probabilities": sections.probabilities,
    "Diversity": sections.diversity,
    "Side by side": sections.completions,
    "Evaluation": sections.evaluation,
}


def report(
    workdir: str | Path,
    *,
    step: int | str | None = None,
    text: str = "",
    prompts: Sequence[str] = (),
    sweep: Path | None = None,
    evaluations: Sequence[Path] = (),
    seconds: float = 20.0,
    tokens: int = 8192,
    tell: Callable[[str], None] = print,
) -> str:
    """The page.

    Args:
      workdir: of the run.
      step: which checkpoint: a step, "best" or None, the latest.
      text: whose attention and probabilities are shown; by default one that the run never learnt from.
      prompts: texts to continue; by default the run's own, and beginnings of such texts.
      sweep: the folder of a sweep; by default a small one is made.
      evaluations: reports of scripts/evaluate.py, files or folders.
      seconds: after which the small sweep ends with the setting that it is at.
      tokens: of the validation text that are evaluated.
      tell: takes a line for each section.

    Raises:
      InputError: `workdir` is not the folder of a run.
    """
    check(tokens >= 0, "tokens", tokens, "at least 0, where 0 evaluates nothing")
    run = RunFolder(Path(workdir).expanduser())
    if not any((run.workdir / name).exists() for name in ("config.json", "metrics.jsonl", "checkpoints")):
        raise InputError(f"{workdir} has no config.json, metrics.jsonl or checkpoints; give the folder of a run")
    try:
        if not (run.workdir / "checkpoints").is_dir():
            raise InputError(f"{workdir} has no checkpoints: the run has saved none yet; look again when it has")
        model = pretrained.load(run.workdir, step=step)
        step = evaluation_report.describe(model, str(run.workdir), step, None)["step"]
    except InputError as error:
        model, step = error, None
    material = sections.Material(run, model, step, text, prompts, sweep, evaluations, seconds, tokens, tell)
    made = []
    for number, (title, make) in enumerate(SECTIONS.items(), 1):
        began, html, why = time.monotonic(), "", ""
        try:
            html = make(material)
        except InputError as error:
            why = str(error)
        took = f"{time.monotonic() - began:.1f} s"
        tell(f"{number}/{len(SECTIONS)} {title.lower()}: {f'left out: {why}' if why else took}")
        made.append({"id": title.lower().replace(" ", "-"), "title": title, "html": Markup(html), "why": why})
    libraries = ", ".join(f"{name} {version(name)}" for name in ("gpt2_jax", "jax", "flax"))
    return pages.render("report.html", name=run.workdir.absolute().name, sections=made, libraries=libraries)

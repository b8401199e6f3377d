"""Makes a report of a training run: one HTML page that needs no other file and no network.

    python scripts/report.py --workdir=runs/quickstart
    python scripts/report.py --workdir=runs/quickstart --step=best --sweep=sweeps/quickstart --evaluation=reports \
        --output=quickstart.html

It has the config, the curves, samples over time, attention, probabilities, diversity, completions side by side and the
evaluation; what cannot be made says why in its place.
"""

import sys
from pathlib import Path

from absl import app, flags, logging

import gpt2_jax
from gpt2_jax.analysis import pages
from gpt2_jax.analysis.run_report import report

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a training run.")
OUTPUT = flags.DEFINE_string("output", None, "File to write, .html; by default report.html in the workdir.")
STEP = flags.DEFINE_string("step", None, "Checkpoint: a step, or 'best'; the latest by default.")
TEXT = flags.DEFINE_string("text", "", "Whose attention and probabilities are shown; by default validation text.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "To continue; several times for several. By default the run's own.")
SWEEP = flags.DEFINE_string("sweep", None, "Folder that scripts/sweep.py wrote; by default a small sweep is made.")
EVALUATION = flags.DEFINE_list("evaluation", [], "Reports of scripts/evaluate.py: files or folders, with commas.")
SECONDS = flags.DEFINE_float("seconds", 20.0, "After which the small sweep ends with the setting that it is at.")
TOKENS = flags.DEFINE_integer("tokens", 8192, "Of the validation text that are evaluated; 0 is none.")


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; a text with spaces needs quotes")
    logging.set_verbosity(logging.ERROR)
    workdir = Path(WORKDIR.value).expanduser()
    file = workdir / "report.html" if OUTPUT.value is None else Path(OUTPUT.value).expanduser()
    try:
        pages.check_suffix(file, (".html",))  # before the work
        page = report(
            workdir,
            step=STEP.value,
            text=TEXT.value,
            prompts=PROMPT.value,
            sweep=None if SWEEP.value is None else Path(SWEEP.value).expanduser(),
            evaluations=[Path(path).expanduser() for path in EVALUATION.value],
            seconds=SECONDS.value,
            tokens=TOKENS.value,
        )
        pages.write(file, page)
        print(file)
    except gpt2_jax.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    flags.mark_flags_as_required(["workdir"])
    app.run(main)

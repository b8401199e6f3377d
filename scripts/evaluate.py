"""Evaluates a model on the tasks of the GPT-2 paper and HellaSwag, beside the published figures.

    python scripts/evaluate.py --model=runs/quickstart --task=lambada_openai --data=lambada_test.jsonl
    python scripts/evaluate.py --model=openai-community/gpt2 --task=wikitext103,lambada --output=reports
    python scripts/evaluate.py --model=runs/quickstart --task=humaneval --data=HumanEval.jsonl.gz --execute
    python scripts/evaluate.py --task=table --output=reports

Tasks, each with its protocol, are in gpt2_jax/evaluation/tasks.py; `--task=table` prints what was published of them,
and beside it what is in the reports of --output. Examples come from the hub, or from --data: a file or folder.
While a text is evaluated its sums are kept in --output; the same command goes on from there. It ends with

    0    all tasks are done
    1    the command line is wrong, or a bug: the traceback says where
    2    bad input, such as a model, a task, a file or a full disk
    130  stopped by SIGINT
"""

import dataclasses
import sys
import time
from pathlib import Path

from absl import app, flags, logging

import gpt2_jax
from gpt2_jax.evaluation import report, tasks
from gpt2_jax.evaluation.humaneval import Drawing
from gpt2_jax.evaluation.logprobs import spread
from gpt2_jax.evaluation.outcome import Settings
from gpt2_jax.evaluation.progress import Progress
from gpt2_jax.evaluation.sandbox import Limits

MODEL = flags.DEFINE_string("model", None, "Training run, folder or file of GPT-2 weights, or hub id.")
TASK = flags.DEFINE_list("task", None, f"{', '.join(tasks.TASKS)}, several with commas, or table.")
DATA = flags.DEFINE_string("data", None, "File or folder with the examples; the hub by default.")
OUTPUT = flags.DEFINE_string("output", None, "Folder for reports (.json and .md), and for what a killed one had done.")
STEP = flags.DEFINE_string("step", None, "Checkpoint of a run: a step, or 'best'; the latest by default.")
REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit of a hub id.")
TOKENIZER = flags.DEFINE_string("tokenizer", None, "Tokenizer file, folder or hub id, in place of the model's own.")
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Of activations and products; a run's own by default."
)
LIMIT = flags.DEFINE_integer("limit", None, "Examples at most; of enwik8 and text8, thousands of bytes.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Sequences that run together, on all devices.")
DEVICES = flags.DEFINE_integer("devices", None, "How many devices share a batch; all by default.")
CONTEXT = flags.DEFINE_integer("context", None, "Tokens in a window on a text; the model's context by default.")
STRIDE = flags.DEFINE_integer("stride", None, "Tokens from a window to the next; the context by default.")
DETOKENIZE = flags.DEFINE_boolean(
    "detokenize", None, "Write text that is cut into words as people do; as the task says."
)
EXECUTE = flags.DEFINE_boolean("execute", False, "Execute the code that the model writes (task humaneval).")

READ = {int: flags.DEFINE_integer, float: flags.DEFINE_float, tuple: flags.DEFINE_list}
for group in (Drawing, Limits):
    for field in dataclasses.fields(group):
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        help_ = f"{field.metadata['help']} By default {default}. Of code alone."
        READ[type(field.default)](field.name, None, help_)


def given(group: type) -> Drawing | Limits | None:
    """The options of a group on the command line; None without any."""
    values = {field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(group)}
    values = {name: value for name, value in values.items() if value is not None}
    if "k" in values:
        if not all(k.isdecimal() for k in values["k"]):
            raise gpt2_jax.InputError(f"k is {','.join(values['k'])}; it must be whole numbers with commas")
        values["k"] = tuple(map(int, values["k"]))
    return group(**values) if values else None


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --task=lambada")
    logging.set_verbosity(logging.ERROR)
    folder = None if OUTPUT.value is None else Path(OUTPUT.value).expanduser()
    try:
        if TASK.value == ["table"]:
            print("\n".join(report.table([] if folder is None else report.read(folder))))
            return 0
        return evaluate([tasks.find(name) for name in TASK.value], folder)
    except gpt2_jax.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with a text from its last sums in --output", file=sys.stderr)
        return 130


def evaluate(chosen: list[tasks.Task], folder: Path | None) -> int:
    if MODEL.value is None:
        raise gpt2_jax.InputError("there is no --model; give a training run, a folder or file of weights, or a hub id")
    drawing, limits = given(Drawing), given(Limits)
    step, revision = STEP.value, REVISION.value
    lm = gpt2_jax.load(MODEL.value, step=step, revision=revision, tokenizer=TOKENIZER.value, dtype=DTYPE.value)
    model = report.describe(lm, MODEL.value, step, revision)
    lm = spread(lm, DEVICES.value)
    for task in chosen:
        options = {
            "data": DATA.value, "limit": LIMIT.value, "batch_size": BATCH_SIZE.value, "context": CONTEXT.value,
            "stride": STRIDE.value, "detokenize": DETOKENIZE.value,
            **(dataclasses.asdict(drawing or Drawing()) if task.draws else {}),
            **(dataclasses.asdict(limits or Limits()) if task.executes else {}),
        }  # fmt: skip
        partial = None
        if folder is not None and task.documents is not None:
            partial = folder / f"{report.stem(task.label(DATA.value), model)}.partial"
        start = time.monotonic()
        with Progress(task.name) as progress:
            settings = Settings(
                batch_size=BATCH_SIZE.value, limit=LIMIT.value, context=CONTEXT.value, stride=STRIDE.value,
                detokenize=DETOKENIZE.value, partial=partial, progress=progress, drawing=drawing,
                execute=EXECUTE.value, limits=limits,
            )  # fmt: skip
            outcome = task.run(lm, DATA.value, settings)
        made = report.make(task, outcome, model, options, time.monotonic() - start)
        print("\n".join(report.lines(made)), flush=True)
        if folder is not None:
            print(*report.write(folder, made), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    flags.mark_flag_as_required("task")
    app.run(main)

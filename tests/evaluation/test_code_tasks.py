import dataclasses
import json
import math

import pytest

from gpt2_jax import InputError
from gpt2_jax.evaluation import confinement, report
from gpt2_jax.evaluation import humaneval as problem_set
from gpt2_jax.evaluation.humaneval import Drawing, Problem, Solution
from gpt2_jax.evaluation.outcome import Settings
from gpt2_jax.evaluation.sandbox import Limits
from gpt2_jax.evaluation.tasks import find
from gpt2_jax.generation.code import parses, sample

TEST = "def check(candidate):\n    assert candidate(2) == 3\n"
PROBLEMS = [Problem(f"Test/{i}", f"def f{i}(x):\n", "    return x + 1\n", TEST, f"f{i}") for i in range(2)]
DRAWING = Drawing(samples=2, k=(1, 2), temperature=1.0, max_new_tokens=12)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(dataclasses.asdict(problem)) + "\n" for problem in PROBLEMS))
    return str(path)


@pytest.mark.skipif(confinement.supported() is not None, reason=str(confinement.supported()))
def test_humaneval_tells_pass_at_k_and_how_programs_ended(lm, file, monkeypatch):
    codes = ["    return x + 1\n", "    return x\n", "    exit(0)\n", "    return (\n"]
    solve = lambda lm, problems, drawing, **_: [
        Solution(problem, code, parses(problem.prompt + code))
        for problem, code in zip([problems[0], problems[0], problems[1], problems[1]], codes)
    ]
    monkeypatch.setattr(problem_set, "solve", solve)
    told = []
    settings = Settings(execute=True, drawing=DRAWING, progress=lambda *args: told.append(args))
    outcome = find("humaneval").run(lm, file, settings)
    values = {name: figure.value for name, figure in outcome.figures.items()}
    assert values == {"pass@1": 0.25, "pass@2": 0.5, "valid": 0.75}
    assert outcome.figures["pass@2"].error == pytest.approx(math.sqrt(0.5) / math.sqrt(2))
    assert outcome.counts == {"problems": 2, "solutions": 4, "ended": 1, "failed": 2, "passed": 1}
    assert told[-1] == (4, 4, "solutions executed")
    made = report.make(find("humaneval"), outcome, MODEL, dataclasses.asdict(DRAWING), 1.0)
    assert "  pass@1                    25.00 % ± 25.00 %" in report.lines(made)


MODEL = {"path": "runs/mine", "step": None, "revision": None, "parameters": 1, "dtype": "float32"}


def test_syntax_is_that_of_the_completions(lm, file):
    outcome = find("syntax").run(lm, file, Settings(drawing=DRAWING, batch_size=4))
    found = sample(lm, [p.prompt for p in PROBLEMS], 2, batch_size=4, beyond_context="slide", **DRAWING.options)
    valid = [[completion.valid for completion in of_prompt] for of_prompt in found]
    assert outcome.figures["valid"].value == sum(map(sum, valid)) / 4
    assert outcome.figures["any_valid"].value == sum(map(any, valid)) / 2
    assert outcome.counts["prompts"] == 2 and outcome.counts["completions"] == 4


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("humaneval", {}, "this executes code that a model writes, and --execute is not given. With it, each program"),
        ("syntax", {"execute": True}, "leave to execute is given, and syntax executes nothing; leave it out"),
        ("syntax", {"limits": Limits()}, "a limit of what is executed is given, and syntax executes nothing; leave"),
        ("lambada", {"drawing": DRAWING}, "how to draw is given, and lambada draws nothing; leave it out"),
        ("humaneval", {"stride": 3}, "stride is 3, and humaneval has no long texts; leave it out"),
    ],
)
def test_what_is_refused(lm, file, task, settings, message):
    with pytest.raises(InputError) as caught:
        find(task).run(lm, file, Settings(**settings))
    assert str(caught.value).startswith(message)

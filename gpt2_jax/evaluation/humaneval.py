"""Code that a model writes: does it parse, and, executed where that is asked for, does it pass (HumanEval)."""

import collections
import dataclasses
import keyword
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpt2_jax.errors import InputError, check
from gpt2_jax.evaluation import sandbox
from gpt2_jax.evaluation.examples import Examples
from gpt2_jax.evaluation.sandbox import Execution, Limits
from gpt2_jax.generation import batches
from gpt2_jax.generation.code import HUMANEVAL_STOPS, parses
from gpt2_jax.generation.options import option
from gpt2_jax.language_model import LanguageModel

COLUMNS = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
Tell = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A function to complete and its tests, in HumanEval's format (Chen et al., 2021).

    Attributes:
      task_id: its name.
      prompt: the function's head and docstring.
      canonical_solution: what may follow.
      test: code that defines `check(candidate)`.
      entry_point: the name of the function.
    """

    task_id: str
    prompt: str
    canonical_solution: str
    test: str
    entry_point: str

    def program(self, code: str) -> str:
        """What is executed to test `code`, which follows the prompt."""
        return f"{self.prompt}{code}\n{self.test}\ncheck({self.entry_point})\n"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """How solutions are drawn, and which pass@k are told.

    Raises:
      InputError: a number out of range.
    """

    samples: int = option(1, "Solutions of each problem; the paper draws 200.")
    k: Sequence[int] = option((1,), "The k of pass@k, each at most `samples`; the paper has 1, 10 and 100.")
    temperature: float = option(0.2, "Of the draw; the paper takes 0.2 for pass@1 and 0.8 for pass@100.")
    top_p: float = option(0.95, "Draw among the fewest tokens of this probability.")
    max_new_tokens: int = option(256, "Tokens of a solution; a text that outgrows the context slides.")
    seed: int = option(0, "Of the first solution of each problem; the others have those that follow.")

    def __post_init__(self):
        check(type(self.samples) is int and self.samples >= 1, "samples", self.samples, "a whole number, at least 1")
        ks = len(self.k) > 0 and all(type(k) is int and 1 <= k <= self.samples for k in self.k)
        check(ks, "k", self.k, f"whole numbers from 1 to samples ({self.samples})")
        if self.samples > 1 and self.temperature == 0:
            raise InputError(f"samples is {self.samples} at temperature 0, which gives one; set a temperature above 0")

    @property
    def options(self) -> dict[str, Any]:
        """Those of `lm.generate` but the seed."""
        draw = {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}
        return draw | ({"top_p": self.top_p} if self.temperature else {})


@dataclasses.dataclass(frozen=True)
class Solution:
    """What a model wrote for a problem.

    Attributes:
      problem: whose.
      code: what follows the prompt.
      valid: whether both together parse.
      execution: how it ended; None if it was not executed.
    """

    problem: Problem
    code: str
    valid: bool
    execution: Execution | None = None


def problems(examples: Examples) -> list[Problem]:
    """The problems of a file's records, each with where it is, for errors.

    Raises:
      InputError: none, one that lacks a field or has another type in it, a name twice, or no function's name.
    """
    found: dict[str, Problem] = {}
    for where, record in examples:
        for name in COLUMNS:
            if not isinstance(record.get(name), str):
                raise InputError(f"{where}: {name!r} is {record.get(name)!r:.60}; HumanEval's format has text there")
        problem = Problem(*(record[name] for name in COLUMNS))
        if not problem.entry_point.isidentifier() or keyword.iskeyword(problem.entry_point):
            raise InputError(f"{where}: 'entry_point' is {problem.entry_point!r:.60}; it must be a function's name")
        if problem.task_id in found:
            raise InputError(f"{where}: the task_id {problem.task_id!r:.60} is there twice; remove one")
        found[problem.task_id] = problem
    if not found:
        raise InputError("there are no problems; give a file with at least one")
    return list(found.values())


def solve(
    lm: LanguageModel,
    problems: Sequence[Problem],
    drawing: Drawing = Drawing(),
    *,
    batch_size: int = 8,
    tell: Tell | None = None,
) -> list[Solution]:
    """Draws `drawing.samples` solutions of each problem, up to HumanEval's stop strings; executes nothing.

    Args:
      lm: the model.
      problems: to be solved.
      drawing: how.
      batch_size: solutions drawn together.
      tell: takes how many are done, and of how many.
    """
    rows = [(problem, drawing.seed + i) for problem in problems for i in range(drawing.samples)]
    drawn = batches.generate(
        lm,
        [(problem.prompt, seed) for problem, seed in rows],
        batch_size,
        stop_strings=HUMANEVAL_STOPS,
        beyond_context="slide",
        **drawing.options,
    )
    solutions = []
    for (problem, _), generation in zip(rows, drawn):
        code = generation.completion
        solutions.append(Solution(problem, code, parses(problem.prompt + code)))
        if tell is not None:
            tell(len(solutions), len(rows))
    return solutions


def check_execution(execute: bool, limits: Limits) -> None:
    """Raises `InputError` unless executing is asked for and possible here; says what it would mean."""
    if not execute:
        raise InputError(
            f"this executes code that a model writes, and --execute is not given. With it, {sandbox.describe(limits)}. "
            "Give --execute, on a machine that you can lose, or take the task 'syntax', which executes nothing"
        )
    sandbox.check_supported()


def execute(solutions: Sequence[Solution], limits: Limits = Limits(), tell: Tell | None = None) -> list[Solution]:
    """The solutions with their executions. One that does not parse is not run; the same code is run once.

    Raises:
      InputError: this machine cannot confine a process.
    """
    executions: dict[str, Execution] = {}
    executed = []
    for solution in solutions:
        program = solution.problem.program(solution.code)
        if program not in executions:
            executions[program] = (
                sandbox.run(program, limits) if solution.valid else Execution("failed", "SyntaxError", 0)
            )
        executed.append(dataclasses.replace(solution, execution=executions[program]))
        if tell is not None:
            tell(len(executed), len(solutions))
    return executed


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that of k solutions at least one passes, without bias, where c of n passed (Chen et al., 2021).

    1 - C(n - c, k) / C(n, k), as a product that no large number is in.

    Raises:
      InputError: not 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise InputError(
            f"pass@{k} of {c} that pass among {n} is not defined; c must be from 0 to n, and k from 1 to n"
        )
    return 1.0 - math.prod(1 - k / i for i in range(n - c + 1, n + 1))


def passes(solutions: Sequence[Solution], k: int) -> np.ndarray:
    """pass@k of each problem, float64 [problems], in the order in which they come."""
    counts = collections.defaultdict(list)
    for solution in solutions:
        counts[solution.problem.task_id].append(solution.execution.passed)
    return np.array([pass_at_k(len(passed), sum(passed), k) for passed in counts.values()])

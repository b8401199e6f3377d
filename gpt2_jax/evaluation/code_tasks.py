"""The tasks of code: which share of a model's solutions passes, and which parses."""

import collections
import math

import numpy as np

from gpt2_jax.evaluation import humaneval as problem_set
from gpt2_jax.evaluation.examples import Examples, text_of
from gpt2_jax.evaluation.outcome import Figure, Outcome, Settings, share
from gpt2_jax.generation import code
from gpt2_jax.language_model import LanguageModel


def humaneval(lm: LanguageModel, examples: Examples, settings: Settings) -> Outcome:
    """HumanEval (Chen et al., 2021): pass@k, whose standard error is that of the mean over problems.

    Raises:
      InputError: no leave to execute, or a machine that cannot confine a process.
    """
    problem_set.check_execution(settings.execute, settings.limits)
    problems = problem_set.problems(examples)
    told = lambda what: settings.progress and (lambda done, total: settings.progress(done, total, what))
    solutions = problem_set.solve(
        lm, problems, settings.drawing, batch_size=settings.batch_size, tell=told("solutions drawn")
    )
    executed = problem_set.execute(solutions, settings.limits, told("solutions executed"))
    figures = {f"pass@{k}": _mean(problem_set.passes(executed, k)) for k in settings.drawing.k}
    figures["valid"] = share([solution.valid for solution in executed])
    results = collections.Counter(solution.execution.result for solution in executed)
    return Outcome(figures, {"problems": len(problems), "solutions": len(executed), **dict(sorted(results.items()))})


def syntax(lm: LanguageModel, examples: Examples, settings: Settings) -> Outcome:
    """Completions of code up to the end of their blocks: the share that parses, and of prompts with one that does.

    Raises:
      InputError: a prompt that is no text, or none.
    """
    prompts = [text_of(where, example, "prompt") for where, example in examples]
    drawing = settings.drawing
    found = code.sample(
        lm, prompts, drawing.samples, batch_size=settings.batch_size, seed=drawing.seed, beyond_context="slide",
        **drawing.options,
    )  # fmt: skip
    everything = [completion for of_prompt in found for completion in of_prompt]
    figures = {"valid": share([completion.valid for completion in everything])}
    if drawing.samples > 1:
        figures["any_valid"] = share([any(c.valid for c in of_prompt) for of_prompt in found])
    ended = sum(completion.stop_reason != "length" for completion in everything)
    return Outcome(figures, {"prompts": len(prompts), "completions": len(everything), "ended": ended})


def _mean(values: np.ndarray) -> Figure:
    n = len(values)
    return Figure(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan)

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax import InputError, LanguageModel
from gpt2_jax.evaluation import confinement, sandbox
from gpt2_jax.evaluation.humaneval import (
    COLUMNS,
    Drawing,
    Problem,
    Solution,
    check_execution,
    execute,
    pass_at_k,
    passes,
    problems,
    solve,
)
from gpt2_jax.evaluation.sandbox import Execution, Limits
from gpt2_jax.generation.code import HUMANEVAL_STOPS
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_characters

ADD = Problem(
    "Test/0", 'def add(x, y):\n    """Adds x and y."""\n', "    return x + y\n",
    "def check(candidate):\n    assert candidate(1, 2) == 3\n", "add",
)  # fmt: skip
needs_confinement = pytest.mark.skipif(confinement.supported() is not None, reason=str(confinement.supported()))


@settings(deadline=None)
@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_share_of_draws_that_hold_a_pass(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_of_large_numbers_and_wrong_ones():
    assert pass_at_k(200, 1, 100) == pytest.approx(0.5)
    assert pass_at_k(5, 0, 3) == 0 and pass_at_k(5, 3, 3) == 1
    with pytest.raises(InputError, match="pass@6 of 2 that pass among 5 is not defined"):
        pass_at_k(5, 2, 6)


@needs_confinement
def test_solutions_are_executed_against_their_tests():
    codes = {"    return x + y\n": "passed", "    return x\n": "failed", "    return (\n": "failed",
             "    exit(0)\n": "ended", "    import os; os._exit(0)\n": "ended"}  # fmt: skip
    solutions = [Solution(ADD, code, valid="(\n" not in code) for code in codes] * 2
    done = []
    executed = execute(solutions, Limits(cpu_seconds=1), tell=lambda *counts: done.append(counts))
    assert [s.execution.result for s in executed] == [*codes.values()] * 2 and done[-1] == (10, 10)
    assert executed[0].execution is executed[5].execution  # the same program is run once
    np.testing.assert_allclose(passes(executed, 1), [2 / 10])
    np.testing.assert_allclose(passes(executed, 9), [1.0])


@needs_confinement
def test_the_canonical_solution_passes():
    assert sandbox.run(ADD.program(ADD.canonical_solution)).passed


def test_without_the_flag_it_is_refused_with_what_it_would_do(monkeypatch):
    with pytest.raises(
        InputError, match=r"--execute is not given. With it, each program runs in .*no network.*'syntax'"
    ):
        check_execution(False, Limits())
    monkeypatch.setattr(confinement, "supported", lambda: "needs Linux")
    with pytest.raises(InputError, match="executing generated code needs Linux; generate here, and execute"):
        check_execution(True, Limits())


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_characters([ADD.prompt + ADD.canonical_solution + "\ncdfip"])
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)


def test_solutions_are_drawn_to_the_stop_strings_of_humaneval(lm):
    drawing = Drawing(samples=3, k=(1, 2), temperature=1.0, max_new_tokens=20, seed=5)
    done = []
    solutions = solve(lm, [ADD, ADD], drawing, batch_size=4, tell=lambda *counts: done.append(counts))
    assert len(solutions) == 6 == done[-1][0] and [s.code for s in solutions[:3]] == [s.code for s in solutions[3:]]
    alone = lm.generate([ADD.prompt] * 4, seed=[6, 0, 0, 0], temperature=1.0, top_p=0.95, max_new_tokens=20,
                        stop_strings=HUMANEVAL_STOPS, beyond_context="slide")[0]  # fmt: skip
    assert solutions[1].code == alone.completion and solutions[1].execution is None


def records(*problems):
    return [(f"x.jsonl:{n}", dict(zip(COLUMNS, vars(p).values()))) for n, p in enumerate(problems, 1)]


def test_problems_are_read():
    assert problems(records(ADD)) == [ADD]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": None}, "x.jsonl:1: 'test' is None; HumanEval's format has text there"),
        ({"entry_point": "add(1)"}, r"x.jsonl:1: 'entry_point' is 'add\(1\)'; it must be a function's name"),
    ],
)
def test_wrong_problems(change, message):
    ((where, record),) = records(ADD)
    with pytest.raises(InputError, match=message):
        problems([(where, record | change)])


def test_a_problem_twice_and_none():
    with pytest.raises(InputError, match=r"x.jsonl:2: the task_id 'Test/0' is there twice; remove one"):
        problems(records(ADD, ADD))
    with pytest.raises(InputError, match="there are no problems; give a file with at least one"):
        problems([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples is 0; it must be a whole number, at least 1"),
        ({"samples": 5, "k": (1, 6)}, r"k is \(1, 6\); it must be whole numbers from 1 to samples \(5\)"),
        ({"k": ()}, r"k is \(\); it must be whole numbers"),
        ({"samples": 2, "temperature": 0}, "samples is 2 at temperature 0, which gives one; set a temperature above 0"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=message):
        Drawing(**options)


def test_outcomes_are_counted_by_problem():
    outcome = lambda passed: Execution("passed" if passed else "failed", "", 0.1)
    other = Problem("Test/1", ADD.prompt, ADD.canonical_solution, ADD.test, "add")
    solutions = [Solution(p, "", True, outcome(ok)) for p, ok in ((ADD, 1), (ADD, 0), (other, 0), (other, 0))]
    np.testing.assert_allclose(passes(solutions, 1), [0.5, 0])
    np.testing.assert_allclose(passes(solutions, 2), [1, 0])

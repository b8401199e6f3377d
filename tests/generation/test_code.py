import ast
import fnmatch
import inspect
import shlex
import textwrap

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax import Generation, InputError, LanguageModel
from gpt2_jax.generation import batches, code
from gpt2_jax.generation.code import complete, cut_block, parses, sample, stops, validity_rate
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_characters

FUNCTION = 'def add(x, y):\n    """Adds.\n\n    >>> add(1, 2)\n    3\n    """\n'


CUT = "<cut>"


@pytest.mark.parametrize(
    ("prompt", "written"),
    [
        (FUNCTION, "    return x + y\n\n\n<cut>def other():\n    pass\n"),
        (FUNCTION, "    return x + y\n\n<cut>print(add(1, 2))\n"),
        (FUNCTION, "    return x + y\n<cut># then\n"),
        (FUNCTION, "    if x:\n        return y\n    else:\n        return x<cut>"),
        (FUNCTION, '    text = """\nat the margin\n"""\n    return text\n<cut>x = 1\n'),
        (FUNCTION, "    return sum([\nx,\ny,\n])\n<cut>x = 1\n"),
        (FUNCTION, "    return (x\n<cut>def broken(\n"),
        (FUNCTION, "<cut>def other():\n    pass\n"),
        ("def ", "add(x, y):\n    return x\n\n<cut>y = 2\n"),
        ("def f(x):", "\n    return x\n<cut>f(1)\n"),
        ("import ", "os\n<cut>import sys\n"),
        ("x = 1\n", "y = 2\n<cut>z = 3\n"),
        ("try:\n    x\n", "except ValueError:\n    y\n<cut>z\n"),
        ("class A:\n    def f(self):\n", "        return 1\n\n<cut>    def g(self):\n        pass\n"),
        ("    def f(self", "):\n        return 1\n\n<cut>    def g(self):\n"),
        ("    async def f(self):\n", "        return 1\n\n<cut>    @property\n"),
        ("def f():\n    return 1\n\nx = ", "2\n<cut>y = 3\n"),
    ],
)
def test_a_completion_ends_with_its_block(prompt, written):
    kept, _ = written.split(CUT)
    assert cut_block(prompt, written.replace(CUT, "")) == kept


FUNCTIONS = [textwrap.fill, textwrap.shorten, textwrap.dedent, fnmatch.filter, shlex.join]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_and_a_method_are_kept_whole_wherever_the_prompt_ends(function):
    source = inspect.getsource(function)
    assert parses(source)
    for whole, more in ((source, "\n\ndef another():\n    pass\n"), (textwrap.indent(source, "    "), "\n    x = 1\n")):
        for end in range(whole.index("def ") + 4, len(whole.rstrip()), 7):
            assert (whole[:end] + cut_block(whole[:end], whole[end:] + more)).rstrip() == whole.rstrip()


@settings(max_examples=200, deadline=None)
@given(st.text("def x():\n    #'1[", max_size=40), st.text("def x():\n    #'1[", max_size=60))
def test_what_is_cut_begins_the_code_and_parsing_agrees_with_ast(prompt, written):
    kept = cut_block(prompt, written)
    assert written.startswith(kept)
    if not (prompt + kept)[:1].isspace():
        try:
            ast.parse(prompt + kept)
            assert parses(prompt + kept)
        except (SyntaxError, ValueError):
            assert not parses(prompt + kept)


def test_what_parses():
    assert parses("") and parses("x = '\\d'\n") and parses("    x = 1\n    y = 2\n") and parses("\n\n  x\n")
    assert not parses("    x = 1\ny = 2\n") and not parses("    x\nelse:\n    y\n")
    assert not parses("x = (") and not parses("\0") and not parses("(" * 5000)
    assert validity_rate(["x", "x = "]) == 0.5
    with pytest.raises(InputError, match="the number of texts is 0; it must be at least 1"):
        validity_rate([])


def test_a_draw_stops_where_a_statement_of_the_margin_begins():
    for prompt, deepest in ((FUNCTION, 0), ("    def f(self", 4), ("class A:\n        def f():\n", 8), ("x" * 9, 0)):
        strings = stops(prompt)
        found = [
            s
            for s in ("\ndef f", "\n@x", "\n# x", "\n    def g", "\n        for x", "\nfrom x")
            if s.startswith(strings)
        ]
        assert len(found) == 4 + (deepest >= 4) + (deepest >= 8)
        assert not any(s.startswith(strings) for s in ("\n)", "\nelse:", "\nexcept:", "\nfinally:", "\n            x"))


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_characters(["def f(x):\n    return x=1\n"])
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)


def test_batches_give_what_each_row_gives_alone(lm):
    rows = [("def", 3), ("x", 0), ("def", 4)]
    found = list(batches.generate(lm, rows, 2, max_new_tokens=8))
    assert len(found) == 3
    for (prompt, seed), generation in zip(rows, found):
        assert generation.text == lm.generate([prompt] * 2, seed=[seed, 9], max_new_tokens=8)[0].text


def test_the_best_candidate_parses_and_is_the_most_probable_that_does(lm):
    options = {"max_new_tokens": 6, "temperature": 0.8, "seed": 1, "batch_size": 8}
    prompts = ["x=", "def f(x"]
    candidates = sample(lm, prompts, 24, **options)
    assert [len(those) for those in candidates] == [24, 24]
    assert len({c.text for c in candidates[0]}) > 4 and 0 < sum(c.valid for c in candidates[0]) < 24
    for prompt, those, best in zip(prompts, candidates, complete(lm, prompts, best_of=24, **options)):
        valid = [c for c in those if c.valid] or those
        assert best == max(valid, key=lambda c: c.score) and best.valid == parses(best.text)
        assert all(c.text == prompt + c.code and str(c) == c.text for c in those)
    drawn = lm.generate(["x="] * 8, seed=list(range(1, 9)), max_new_tokens=6, temperature=0.8,
                        stop_strings=stops("x="), logprobs=0)  # fmt: skip
    means = [g.logprobs.mean() if len(g.logprobs) else -np.inf for g in drawn]
    np.testing.assert_allclose([c.score for c in candidates[0][:8]], means, rtol=1e-5)
    assert complete(lm, "x=", best_of=24, **options) == complete(lm, ["x="], best_of=24, **options)[0]


def test_an_empty_completion_has_no_mean():
    nothing = Generation("", "", np.zeros(0, np.int32), "end_token", logprobs=np.zeros(0))
    assert code._completion("x = 1", nothing) == code.Completion("x = 1", "", True, -float("inf"), "end_token")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_strings": ["x"]}, "stop_strings is set by the completion of code; remove it, or call lm.generate"),
        ({"best_of": 0}, "the number of candidates is 0; it must be a whole number, at least 1"),
        ({"best_of": 2, "temperature": 0}, "2 candidates at temperature 0 are all the same; set a temperature above 0"),
        ({"seed": [1]}, r"seed is \[1\]; it must be one whole number"),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number, at least 1"),
        ({"num_beams": 2}, "logprobs is 0, which beam search does not take"),
        ({"tempreature": 1}, "there is no option 'tempreature'; did you mean 'temperature'?"),
    ],
)
def test_wrong_options(lm, options, message):
    with pytest.raises(InputError, match=message):
        complete(lm, "x", **options)

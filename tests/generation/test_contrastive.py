import re

import jax
import numpy as np
import pytest

from gpt2_jax import InputError
from gpt2_jax.generation import contrastive
from gpt2_jax.generation.pausing import finish
from gpt2_jax.generation.sampler import start_state
from gpt2_jax.generation.sampling import Sampling
from gpt2_jax.model import unstack

PROMPTS = [[1, 2, 3], [5] * 18, [7]]
hidden = jax.jit(lambda model, tokens: (model.hidden(tokens), model(tokens)))


@pytest.fixture(scope="module")
def model(tiny_model):
    return unstack(tiny_model)


def run(model, prompts=PROMPTS, n=6, alpha=0.6, top_k=4, end=(), chunk=None, **settings):
    search = contrastive.search(
        model, prompts, max_new_tokens=n, penalty_alpha=alpha, top_k=top_k,
        sampling=Sampling(temperature=0, **settings), end_tokens=np.array([*end, -1, -1]),
        chunk=chunk,
    )  # fmt: skip
    return [row.tolist() for row in finish(search)]


def reference(model, prompt, n, alpha, k):
    """The definition, by the whole forward pass for every candidate."""
    states = lambda text: [np.asarray(x)[0] for x in hidden(model, np.array([text + [0] * (32 - len(text))]))]
    text = list(prompt)
    for _ in range(n):
        x, logits = states(text)
        p = np.asarray(jax.nn.softmax(logits[len(text) - 1]))
        before = x[: len(text)] / np.linalg.norm(x[: len(text)], axis=-1, keepdims=True)
        worth = {}
        for token in np.argsort(-p)[:k]:
            mine = states([*text, int(token)])[0][len(text)]
            worth[int(token)] = (1 - alpha) * p[token] - alpha * (before @ (mine / np.linalg.norm(mine))).max()
        text.append(max(worth, key=worth.get))
    return text[len(prompt) :]


@pytest.mark.parametrize(("alpha", "k"), [(0.6, 4), (0.2, 4), (1.0, 7)])
def test_it_is_the_definition(model, alpha, k):
    assert run(model, alpha=alpha, top_k=k) == [reference(model, p, 6, alpha, k) for p in PROMPTS]


def test_each_prompt_gives_what_it_gives_alone(model):
    assert run(model, n=10) == [run(model, [p], n=10)[0] for p in PROMPTS]


def test_a_search_pauses_and_finds_the_same(model):
    assert run(model, n=9, chunk=1) == run(model, n=9, chunk=4) == run(model, n=9)


def test_it_stops_at_an_end_token_and_obeys_controls(model):
    free = run(model, n=8)
    end = free[0][3]
    stopped = run(model, n=8, end=[end])
    assert stopped[0] == free[0][: free[0].index(end) + 1]
    assert end not in run(model, n=8, end=[end], min_new_tokens=8)[0][:7]
    assert [row[0] for row in run(model, n=8, alpha=1.0, forced_bos_token_id=5)] == [5, 5, 5]


def test_other_values_compile_nothing_anew(model):
    run(model)
    before = contrastive._fill._cache_size(), contrastive._advance._cache_size()
    run(model, [[3], [4] * 20, [9, 9]], n=9, alpha=0.1, repetition_penalty=1.5)
    assert (contrastive._fill._cache_size(), contrastive._advance._cache_size()) == before


def test_moving_candidates_copies_no_cache(model):
    start, ends = start_state([[1] * 9], [(0, 0)], 5), np.full(4, -1, np.int32)
    rules = contrastive.Rules(Sampling(temperature=0), ends, np.int32(5), np.float32(0.6))
    state = contrastive._fill(model, start.history, slots=16, capacity=16, top_k=4)
    lowered = contrastive._advance.lower(model, state, rules, np.int32(5), top_k=4)
    program = lowered.compile({"xla_backend_optimization_level": 3}).as_text()  # turned off by the tests' environment
    assert "f32[16,32,8]" in program  # 4 candidates of 4 heads, 32 slots
    assert not re.findall(r"= f32\[16,32,8\]\S* copy\(", program)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"penalty_alpha is 1.5; it must be in \(0, 1\]"),
        ({"top_k": 1}, "top_k is 1 beside penalty_alpha; contrastive search needs from 2 to 101 candidates"),
        ({"top_k": 500}, "top_k is 500 beside penalty_alpha"),
    ],
)
def test_values_out_of_range(model, options, message):
    with pytest.raises(InputError, match=message):
        run(model, **options)

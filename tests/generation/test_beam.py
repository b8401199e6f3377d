import contextlib
import itertools
import re

import jax
import numpy as np
import pytest

from gpt2_jax import InputError
from gpt2_jax.generation import beam
from gpt2_jax.generation.pausing import finish
from gpt2_jax.generation.sampler import start_state
from gpt2_jax.generation.sampling import Sampling
from gpt2_jax.model import GPT2, unstack
from gpt2_jax.model_config import GPT2Config

V, END = 9, 3
PROMPTS = [[1, 2], [5] * 18, [7, 0, 8]]
forward = jax.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)))


@pytest.fixture(scope="module")
def model():
    config = GPT2Config(vocab_size=V, n_positions=32, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5)
    return unstack(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(1)))


def run(*args, **options):
    return finish(start_search(*args, **options))


def start_search(model, prompts=PROMPTS, n=5, temperature=0.0, seeds=None, end=(END,), **options):
    settings = {k: options.pop(k) for k in ("min_new_tokens", "top_k", "repetition_penalty") if k in options}
    return beam.search(
        model, prompts, max_new_tokens=n, sampling=Sampling(temperature=temperature, **settings),
        end_tokens=np.array([*end, -1, -1, -1, -1][:4]), seeds=seeds or [0] * len(prompts), **options,
    )  # fmt: skip


def texts(beams):
    return [b.tokens.tolist() for b in beams]


def log_probability(model, prompt, new):
    text = [*prompt, *new]
    log_p = np.asarray(forward(model, np.array([text + [0] * (32 - len(text))])))[0]
    return float(sum(log_p[len(prompt) + i - 1, token] for i, token in enumerate(new)))


def reference(model, prompt, n, K, length_penalty=1.0, early_stopping=False, groups=1, diversity_penalty=0.0):
    """Beam search as FlaxGPT2 defines it and groups as PyTorch, with lists and floats: (score, tokens, ended) each."""
    k = K // groups
    running, ended, done = [[(0.0, [])] for _ in range(groups)], [[] for _ in range(groups)], [False] * groups
    for count in range(1, n + 1):
        taken = []
        for g in range(groups):
            if done[g]:
                continue
            every = []
            for score, new in running[g]:
                text = [*prompt, *new]
                log_p = np.asarray(forward(model, np.array([text + [0] * (32 - len(text))])))[0, len(text) - 1]
                worth = [float(log_p[token]) - diversity_penalty * taken.count(token) for token in range(V)]
                every += [(score + worth[token], [*new, token]) for token in range(V)]
            every = sorted(every, key=lambda c: -c[0])[: 2 * k]
            may_end = every if groups == 1 else every[:k]
            ended[g] += [(score / count**length_penalty, new) for score, new in may_end if new[-1] == END]
            ended[g] = sorted(ended[g], key=lambda c: -c[0])[:k]
            running[g] = [c for c in every if c[1][-1] != END][:k]
            taken += [new[-1] for _, new in running[g]]
            hope = (running[g] if groups == 1 else every)[0][0]
            farthest = n if early_stopping == "never" and length_penalty > 0 else count
            done[g] = len(ended[g]) == k and (
                early_stopping is True or hope / farthest**length_penalty <= ended[g][-1][0]
            )
        if all(done):
            break
    found = []
    order = (lambda c: (not c[2], -c[0])) if groups == 1 else (lambda c: -c[0])
    for g in range(groups):
        cut_off = [] if done[g] else [(score / n**length_penalty, new, False) for score, new in running[g]]
        found += sorted([*((*c, True) for c in ended[g]), *cut_off], key=order)[:k]
    return sorted(found, key=order)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-4.0, 0.0, 1.0, 2.5])
def test_it_finds_what_a_plain_reference_finds(model, early_stopping, length_penalty):
    options = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    found = run(model, n=6, num_beams=4, num_return_sequences=4, **options)
    for prompt, beams in zip(PROMPTS, found):
        check(beams, reference(model, prompt, 6, 4, **options))


@pytest.mark.parametrize("diversity_penalty", [1e-6, 0.7, 100.0])
def test_groups_find_what_a_plain_reference_finds(model, diversity_penalty):
    options = {"diversity_penalty": diversity_penalty, "early_stopping": diversity_penalty == 0.7}
    found = run(model, n=6, num_beams=4, num_beam_groups=2, num_return_sequences=4, **options)
    for prompt, beams in zip(PROMPTS, found):
        check(beams, reference(model, prompt, 6, 4, groups=2, **options))


def check(beams, expected):
    assert texts(beams) == [new for _, new, _ in expected]
    np.testing.assert_allclose([b.score for b in beams], [score for score, _, _ in expected], rtol=1e-4)
    assert [b.finished for b in beams] == [ended for _, _, ended in expected]


def test_as_many_beams_as_texts_find_them_all(model):
    others = [token for token in range(V) if token != END]
    ended = [[END], *([token, END] for token in others)]
    best_first = lambda new: -log_probability(model, PROMPTS[0], new) / len(new)
    every = [*sorted(ended, key=best_first), *sorted(map(list, itertools.product(others, repeat=2)), key=best_first)]
    beams = run(model, PROMPTS[:1], n=2, num_beams=V**2, num_return_sequences=len(every))[0]
    assert texts(beams) == every
    np.testing.assert_allclose([b.score for b in beams], [-best_first(new) for new in every], rtol=1e-4)
    with pytest.raises(InputError, match="num_return_sequences is 74; the controls and max_new_tokens leave only 73"):
        run(model, PROMPTS[:1], n=2, num_beams=V**2, num_return_sequences=74)


def test_each_prompt_gives_what_it_gives_alone(model):
    groups = {"num_beam_groups": 2, "diversity_penalty": 0.5, "temperature": 1.0}
    for options, rows in (({}, PROMPTS), ({"temperature": 1.0}, PROMPTS), (groups, PROMPTS[:1])):
        options |= {"num_beams": 4, "num_return_sequences": 4, "seeds": [4, 5, 6]}
        together = run(model, **options)
        for i, prompt in enumerate(rows):
            alone = run(model, [prompt], **options | {"seeds": [options["seeds"][i]]})
            assert texts(together[i]) == texts(alone[0])


def test_one_beam_is_greedy(model):
    for prompt, (found,) in zip(PROMPTS, run(model, n=8, num_beams=1, end=())):
        text = list(prompt)
        for _ in range(8):
            text.append(int(forward(model, np.array([text + [0] * (32 - len(text))]))[0, len(text) - 1].argmax()))
        assert found.tokens.tolist() == text[len(prompt) :]


def test_candidates_are_drawn_without_replacement_and_the_best_go_on(model):
    draws = run(model, [PROMPTS[0]] * 600, n=1, temperature=1.0, num_beams=1, end=(), seeds=range(600))
    p = np.exp(np.asarray(forward(model, np.array([PROMPTS[0] + [0] * 30])))[0, 1])
    pairs = p[:, None] * p / (1 - p[:, None])  # i, then j
    kept = np.where(p[:, None] > p, pairs + pairs.T, 0.0).sum(1)
    np.testing.assert_allclose(np.bincount([d[0].tokens[0] for d in draws], minlength=V) / 600, kept, atol=0.05)
    again = run(model, temperature=1.0, num_beams=4, seeds=[1, 1, 2])
    assert [texts(b) for b in again] == [texts(b) for b in run(model, temperature=1.0, num_beams=4, seeds=[1, 1, 2])]
    assert any(texts(a) != texts(b) for a, b in zip(again, run(model, temperature=1.0, num_beams=4, seeds=[7, 8, 9])))


def test_beams_without_a_text_neither_end_nor_come_back(model):
    # Two tokens are left each step: at first, two of the four beams have no text.
    settings = {"temperature": 1.0, "top_k": 1, "num_beams": 4, "num_return_sequences": 4, "early_stopping": True}
    for beams in run(model, n=4, seeds=[1, 2, 3], **settings):
        assert len({tuple(text) for text in texts(beams)}) == 4
        assert all(-50 < b.score < 0 for b in beams)
    with pytest.raises(InputError, match=r"num_return_sequences is 4; .* leave only 2 possible: ask for fewer"):
        run(model, n=1, seeds=[1, 2, 3], **settings)


def test_controls_are_obeyed_by_beams(model):
    for beams in run(model, n=6, num_beams=4, num_return_sequences=4, min_new_tokens=4):
        assert all(END not in text[:4] for text in texts(beams))


def test_several_end_tokens(model):
    for beams in run(model, n=6, num_beams=4, num_return_sequences=4, end=(END, 5, 6)):
        for b in beams:
            *inside, last = b.tokens.tolist()
            assert not {END, 5, 6} & set(inside) and b.finished == (last in {END, 5, 6})


def test_a_search_pauses_and_finds_the_same(model):
    whole = run(model, n=9, num_beams=4)
    for chunk, pauses in ((1, 8), (3, 3)):
        search, paused = start_search(model, n=9, num_beams=4, end=(), chunk=chunk), 0
        with contextlib.suppress(StopIteration):
            while True:
                next(search)
                paused += 1
        assert paused == pauses
        assert [texts(b) for b in run(model, n=9, num_beams=4, chunk=chunk)] == [texts(b) for b in whole]


def test_other_values_compile_nothing_anew(model):
    run(model, num_beams=4)
    before = beam._fill._cache_size(), beam._advance._cache_size()
    run(model, n=9, num_beams=4, length_penalty=0.3, early_stopping="never", temperature=0.7, top_k=3)
    run(model, [[1, 2, 3], [4] * 20, [5]], num_beams=4, early_stopping=True, repetition_penalty=1.3, end=())
    run(model, num_beams=4, num_return_sequences=4, end=[5])
    assert (beam._fill._cache_size(), beam._advance._cache_size()) == before


def test_moving_beams_copies_no_cache(model):
    start = start_state([[1] * 9], [(0, 0)], 5)
    ends = np.full(4, -1, np.int32)
    rules = beam.Rules(Sampling(temperature=0), ends, np.int32(5), np.float32(1), np.float32(0), np.int32(0))
    state, decoding = beam._fill(
        model, start.history, start.keys, rules, slots=16, capacity=16, num_beams=4, groups=1, candidates=2
    )
    lowered = beam._advance.lower(model, state, decoding, rules, np.int32(5), candidates=2)
    program = lowered.compile({"xla_backend_optimization_level": 3}).as_text()  # turned off by the tests' environment
    assert "f32[8,32,8]" in program  # 4 beams of 2 heads, 32 slots
    assert not re.findall(r"= f32\[8,32,8\]\S* copy\(", program)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, r"num_beams is 0; it must be at least 1"),
        (
            {"num_beams": 2, "num_return_sequences": 3},
            r"num_return_sequences is 3; it must be from 1 to num_beams \(2\)",
        ),
        (
            {"num_beams": 2, "num_return_sequences": 0},
            r"num_return_sequences is 0; it must be from 1 to num_beams \(2\)",
        ),
        ({"num_beams": 4, "num_beam_groups": 3}, r"num_beam_groups is 3; it must divide num_beams \(4\)"),
        ({"num_beams": 4, "num_beam_groups": 0}, r"num_beam_groups is 0; it must divide num_beams \(4\)"),
        ({"num_beams": 4, "num_beam_groups": 2}, "diversity_penalty is 0.0 with num_beam_groups 2; several groups"),
        ({"num_beams": 4, "diversity_penalty": 1.0}, "diversity_penalty is 1.0 with num_beam_groups 1; several groups"),
        ({"num_beams": 4, "diversity_penalty": -1.0}, "diversity_penalty is -1.0 with num_beam_groups 1"),
        ({"num_beams": 4, "diversity_penalty": float("nan")}, "diversity_penalty is nan with num_beam_groups 1"),
        (
            {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": float("inf")},
            r"diversity_penalty is inf with num_beam_groups 2; several groups need one above 0 \(up to 1e\+09\)",
        ),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping is 'soon'; it must be True, False or 'never'"),
        ({"num_beams": 2, "early_stopping": []}, r"early_stopping is \[\]; it must be True, False or 'never'"),
        ({"num_beams": 2, "length_penalty": float("nan")}, "length_penalty is nan; it must be from -8 to 8"),
        ({"num_beams": 2, "length_penalty": 9.0}, "length_penalty is 9.0; it must be from -8 to 8"),
    ],
)
def test_numbers_that_do_not_fit(model, options, message):
    with pytest.raises(InputError, match=message):
        run(model, **options)

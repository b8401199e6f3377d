import dataclasses
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from gpt2_jax import InputError
from gpt2_jax.generation.options import parse
from gpt2_jax.generation.request import make_request
from gpt2_jax.serving import rows as programs
from gpt2_jax.serving.batcher import Batcher
from gpt2_jax.serving.rows import Settings
from gpt2_jax.serving.stream import Busy, Cancelled, Closed

SECONDS = 120  # no test waits so long unless something hangs
PROMPTS = ["", "the ", "quick brown fox", [5, 6, 7], "jumps", list(range(170))]  # of two buckets
# Each switches something on; together in one batch every row has its own.
SETTINGS = [
    {"temperature": 0},
    {},
    {"top_k": 5, "temperature": 0.8},
    {"top_p": 0.9, "min_p": 0.01},
    {"typical_p": 0.8, "temperature": 1.3},
    {"epsilon_cutoff": 0.01},
    {"eta_cutoff": 0.02, "top_k": 40},
    {"repetition_penalty": 1.4, "temperature": 0},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"no_repeat_ngram_size": 2, "temperature": 0},
    {"min_new_tokens": 5, "eos_token_id": [3, 4, 5, 6]},
    {"forced_bos_token_id": 9, "forced_eos_token_id": 10},
]
LISTS = {
    "bad_words_ids": ["th", "q", [1, 2, 3]],
    "sequence_bias": {"e": 2.0, (7, 8): -3.0},
    "suppress_tokens": [20, 21, 22, 23, 24],
    "begin_suppress_tokens": [30, 31],
    "exponential_decay_length_penalty": (3, 1.05),
    "line_length": (10, 0.5),
    "stop_strings": ["e", "ab"],
    "logprobs": 3,
}


@pytest.fixture(scope="module")
def batcher(lm):
    with Batcher(lm, rows=4, waiting=64) as batcher:
        batcher.warm()
        yield batcher


def same(found, wanted):
    assert (found.text, found.completion, found.stop_reason) == (wanted.text, wanted.completion, wanted.stop_reason)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    assert (found.logprobs is None) == (wanted.logprobs is None)
    if wanted.logprobs is not None:
        np.testing.assert_array_equal(found.top_tokens, wanted.top_tokens)
        np.testing.assert_allclose(found.logprobs, wanted.logprobs, atol=1e-4)
        np.testing.assert_allclose(found.top_logprobs, wanted.top_logprobs, atol=1e-4)


def mixed_requests(seed, count):
    """(prompt, options) at random, of few shapes so that `lm.generate` compiles little."""
    choose = random.Random(seed)
    for number in range(count):
        prompt = choose.choice(PROMPTS)
        long = len(prompt) > 100
        options = dict(choose.choice(SETTINGS), seed=choose.choice([number, -1, 2**40 + number]))
        if options.get("temperature", 1) and not long and choose.random() < 0.3:
            options |= LISTS
        yield prompt, options | {"max_new_tokens": choose.randint(6, 16) if long else choose.randint(33, 64)}


@pytest.mark.parametrize("seed", [0, 1])
def test_every_text_is_the_one_that_it_is_alone(lm, batcher, compilations, seed):
    requests = list(mixed_requests(seed, 30))
    choose, found = random.Random(seed), {}

    def reader(number):
        time.sleep(choose.random() * 0.3)
        prompt, options = requests[number]
        stream = batcher.submit(prompt, **options)
        if number % 6 == 5:  # leaves in the midst of it, or before it begins
            if number % 12 == 5:
                next(iter(stream), None)
            stream.cancel()
        else:
            found[number] = "".join(stream), stream.result(SECONDS)

    readers = [threading.Thread(target=reader, args=(number,)) for number in range(len(requests))]
    [thread.start() for thread in readers]
    [thread.join() for thread in readers]
    assert not compilations and len(found) == 25
    for number, (text, result) in found.items():
        prompt, options = requests[number]
        wanted = lm.generate(prompt, **options)
        same(result, wanted)
        assert text == wanted.completion


def test_several_texts_of_a_prompt(lm, batcher):
    options = {"max_new_tokens": 40, "num_return_sequences": 6, "seed": 3}
    streams = batcher.submit_all("the ", **options)
    for stream, wanted in zip(streams, lm.generate("the ", **options)):
        same(stream.result(SECONDS), wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"penalty_alpha": 0.5, "top_k": 4},
        {"guidance_scale": 1.5, "negative_prompt": "fox", "logprobs": 2, "num_return_sequences": 2},
        {"beyond_context": "slide", "max_new_tokens": 200, "eos_token_id": []},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_shares_no_steps_runs_between_them(lm, batcher, options):
    options = {"max_new_tokens": 40, **options}
    beside = batcher.submit("quick", max_new_tokens=64, eos_token_id=[])
    streams = batcher.submit_all("the ", **options)
    results = lm.generate(["the "], **options)
    for stream, wanted in zip(streams, results):
        assert "".join(stream) == wanted.completion
        same(stream.result(SECONDS), wanted)
        assert stream.result().score == wanted.score
    same(beside.result(SECONDS), lm.generate("quick", max_new_tokens=64, eos_token_id=[]))


@pytest.mark.parametrize("options", [{}, {"suppress_tokens": [7] * 600}, {"logprobs": 30}, {"eos_token_id": [1] * 17}])
def test_lists_longer_than_a_row_has_room_for_share_no_steps(lm, options):
    request = make_request(["a"], parse(options), lm.tokenizer, lm.config)
    assert (Settings.of(request, 0, suppressed=512) is None) == bool(options)


def test_a_vocabulary_far_larger_than_the_tokenizer_leaves_room(lm):
    config = dataclasses.replace(lm.config, vocab_size=len(lm.tokenizer) + 1100)
    request = make_request(["a"], parse({"suppress_tokens": [7] * 512}), lm.tokenizer, config)
    table = Settings.of(request, 0, suppressed=512 + 1100).sampling.suppress_tokens
    assert {7, len(lm.tokenizer), config.vocab_size - 1} < set(table.tolist())


def test_pieces_have_the_tokens_that_came(batcher):
    stream = batcher.submit("the ", max_new_tokens=30, logprobs=2, eos_token_id=[], stop_strings="zzz")
    pieces, result = list(stream.pieces()), stream.result(SECONDS)
    assert [token for piece in pieces for token in piece.tokens] == result.tokens[-30:].tolist()
    np.testing.assert_array_equal([score.chosen for piece in pieces for score in piece.scores], result.logprobs)
    assert "".join(piece.text for piece in pieces) == result.completion


def test_time_is_bounded(batcher):
    result = batcher.submit("the ", max_new_tokens=100, max_time=1e-9, eos_token_id=[]).result(SECONDS)
    assert result.stop_reason == "time" and len(result.completion) > 0


def test_a_cancelled_text_ends_and_frees_its_row(lm, batcher):
    endless = [batcher.submit("a", max_new_tokens=190, eos_token_id=[]) for _ in range(4)]
    waiting = batcher.submit("the ", max_new_tokens=35)
    first = iter(endless[0])
    next(first)
    for stream in endless:
        stream.cancel()
    assert len(list(first)) < 180
    with pytest.raises(Cancelled, match="the text was cancelled"):
        endless[0].result(SECONDS)
    same(waiting.result(SECONDS), lm.generate("the ", max_new_tokens=35))
    waiting.cancel()  # after its end
    assert waiting.result().completion is not None


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"penalty_alpha": 0.5, "top_k": 2}, {"best_of": 2}])
def test_a_cancelled_search_ends_within_a_step(lm, batcher, monkeypatch, options):
    pauses, begun = [], threading.Event()

    def run(request, chunk):
        for pause in type(lm).run(lm, request, chunk):
            pauses.append(pause)
            begun.set()
            yield pause

    with monkeypatch.context() as patch:
        patch.setattr(lm, "run", run)
        search = batcher.submit("a", max_new_tokens=190, eos_token_id=[], **options)
        assert begun.wait(SECONDS)
    search.cancel()
    wanted = lm.generate("the ", max_new_tokens=35, **options)
    same(batcher.submit("the ", max_new_tokens=35, **options).result(SECONDS), wanted)  # one after the other
    assert len(pauses) < 180


def test_bad_input_is_refused_at_once(batcher):
    with pytest.raises(InputError, match="top_p is 2; it must be in"):
        batcher.submit("a", top_p=2)
    with pytest.raises(InputError, match="there is no option 'topp'; did you mean 'top_p'"):
        batcher.submit("a", topp=1)
    with pytest.raises(InputError, match="stop_strings has an empty string"):
        batcher.submit("a", stop_strings=[""])
    with pytest.raises(InputError, match=r"num_return_sequences is 2; it must be 1 for one stream; submit_all gives"):
        batcher.submit("a", num_return_sequences=2)
    with pytest.raises(InputError, match="num_return_sequences is 65; it must be at most 64, which may wait here"):
        batcher.submit_all("a", num_return_sequences=65)
    with pytest.raises(InputError, match="token id 300; ids must be from 0 to"):
        batcher.submit([300])


def test_rows_are_a_power_of_two(lm):
    with pytest.raises(InputError, match="rows is 3; it must be a power of two, such as 16"):
        Batcher(lm, rows=3)
    with pytest.raises(InputError, match="waiting is 0; it must be at least 1"):
        Batcher(lm, waiting=0)


def test_busy_and_closed(lm):
    with Batcher(lm, rows=1, waiting=2) as batcher:
        running = batcher.submit("a", max_new_tokens=150, eos_token_id=[])
        next(iter(running))
        waiting = [batcher.submit("a", max_new_tokens=150, eos_token_id=[]) for _ in range(2)]
        with pytest.raises(Busy, match="2 texts wait already, and 2 may; try again later"):
            batcher.submit("a")
        waiting[0].cancel()
        batcher.submit("a")
        with pytest.raises(TimeoutError, match=r"the text has not ended after 0\.001 seconds"):
            waiting[1].result(0.001)
    with pytest.raises(Closed, match="the batcher was closed"):
        waiting[1].result(SECONDS)
    with pytest.raises(Closed, match="the batcher was closed"):
        list(running)
    with pytest.raises(Closed, match="the batcher is closed; make another"):
        batcher.submit("a")


def test_a_fault_of_the_device_ends_its_rows_and_no_others(lm, batcher, monkeypatch):
    running = [batcher.submit("a", max_new_tokens=180, eos_token_id=[]) for _ in range(2)]
    next(iter(running[1]))
    draw = programs.draw

    def fail_once(*arguments):
        monkeypatch.setattr(programs, "draw", draw)
        raise MemoryError("the device has no memory")

    monkeypatch.setattr(programs, "draw", fail_once)
    for stream in running:
        with pytest.raises(MemoryError, match="the device has no memory"):
            stream.result(SECONDS)
    same(batcher.submit("the ", max_new_tokens=35).result(SECONDS), lm.generate("the ", max_new_tokens=35))


def test_a_fault_of_one_text_is_its_own(lm, batcher, monkeypatch):
    beside = batcher.submit("the ", max_new_tokens=60, eos_token_id=[])
    broken = batcher.submit("quick", max_new_tokens=60, eos_token_id=[])
    monkeypatch.setattr(broken, "_decoder", None)
    with pytest.raises(AttributeError):
        "".join(broken)
    same(beside.result(SECONDS), lm.generate("the ", max_new_tokens=60, eos_token_id=[]))


LEFT_OPEN = """
import atexit
import jax
from gpt2_jax import GPT2, GPT2Config, LanguageModel
from gpt2_jax.serving.batcher import Batcher
from gpt2_jax.tokenizer_training import train_characters

atexit.register(lambda: print("still there" if batcher._thread.is_alive() else "at its end"))  # runs after later ones
tokenizer = train_characters(["abc"])
config = GPT2Config(vocab_size=len(tokenizer), n_positions=512, n_embd=16, n_layer=1, n_head=2)
batcher = Batcher(LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer), rows=1)
next(iter(batcher.submit("a", max_new_tokens=500, eos_token_id=[])))
"""


def test_python_ends_while_a_text_is_written():
    result = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, timeout=SECONDS)
    assert (result.returncode, result.stdout) == (0, "at its end\n"), result.stderr

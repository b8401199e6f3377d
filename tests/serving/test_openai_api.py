import json
import random
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2_jax import InputError
from gpt2_jax.generation.options import parse
from gpt2_jax.generation.request import make_request
from gpt2_jax.serving import completion_request, openai_api
from gpt2_jax.serving.models import Models
from gpt2_jax.serving.openai_api import make_app

KEY = "sesame"
NEVER_END = {"269": -100}


@pytest.fixture(scope="module")
def models(lm):
    with Models({"tiny": lm}, rows=4) as models:
        yield models


@pytest.fixture(scope="module")
def address(models):
    server = uvicorn.Server(uvicorn.Config(make_app(models, api_key=KEY), log_level="error"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def post(address, body, key=KEY):
    """(status, headers, JSON) of any bytes."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{address}/v1/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, json.loads(error.read())


def complete(client, prompt="the ", **options):
    return client.completions.create(model="tiny", prompt=prompt, **options)


def test_a_completion_is_that_of_generate(lm, client):
    answer = complete(client, max_tokens=40, seed=3, temperature=0.9, top_p=0.95)
    wanted = lm.generate("the ", max_new_tokens=40, seed=3, temperature=0.9, top_p=0.95)
    assert answer.object == "text_completion" and answer.model == "tiny" and answer.id.startswith("cmpl-")
    assert [choice.text for choice in answer.choices] == [wanted.completion]
    assert answer.choices[0].finish_reason == {"end_token": "stop", "length": "length"}[wanted.stop_reason]
    read = len(lm.tokenizer.encode("the "))
    assert answer.usage.prompt_tokens == read and answer.usage.completion_tokens == len(wanted.tokens) - read
    assert answer.usage.total_tokens == len(wanted.tokens)
    assert complete(client, seed=1, logit_bias={"50": -100}).usage.completion_tokens <= 16


def test_several_prompts_and_texts(lm, client):
    prompts = ["the ", "fox"]
    answer = complete(client, prompts, n=2, max_tokens=40, seed=5, echo=True)
    wanted = lm.generate(prompts, num_return_sequences=2, max_new_tokens=40, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [result.text for result in wanted]
    ids = [lm.tokenizer.encode(prompt) for prompt in prompts]
    same = complete(client, ids, n=2, max_tokens=40, seed=5, echo=True)
    assert [choice.text for choice in same.choices] == [result.text for result in wanted]
    assert complete(client, ids[0], max_tokens=3, seed=5).usage.prompt_tokens == len(ids[0])


def test_greedy_requests_may_say_what_they_would_draw_among(lm, client):
    wanted = lm.generate("the ", max_new_tokens=20, temperature=0).completion
    answer = complete(client, ["the ", "the "], max_tokens=20, temperature=0, top_p=0.5, n=2)
    assert [choice.text for choice in answer.choices] == [wanted] * 4
    with pytest.raises(openai.BadRequestError, match="top_k is 3, which has no effect without a temperature above 0"):
        complete(client, temperature=0, extra_body={"top_k": 3})


def test_streams_join_to_the_whole(client):
    options = {"max_tokens": 30, "seed": 2, "n": 2, "logprobs": 2, "logit_bias": NEVER_END, "stop": ["zz", "qx"]}
    whole = complete(client, **options)
    chunks = list(complete(client, stream=True, stream_options={"include_usage": True}, **options))
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage and chunks[0].usage is None
    assert len({chunk.id for chunk in chunks}) == 1 and len(chunks) > 20
    for wanted in whole.choices:
        parts = [choice for chunk in chunks for choice in chunk.choices if choice.index == wanted.index]
        assert "".join(part.text for part in parts) == wanted.text
        assert [part.finish_reason for part in parts if part.finish_reason] == [wanted.finish_reason]
        assert [x for part in parts if part.logprobs for x in part.logprobs.tokens] == wanted.logprobs.tokens
        for name in ("token_logprobs", "text_offset"):
            told = [x for part in parts if part.logprobs for x in getattr(part.logprobs, name)]
            assert told == pytest.approx(getattr(wanted.logprobs, name), abs=1e-4)


def test_a_seed_is_reproducible_and_without_one_texts_differ(client):
    texts = [complete(client, max_tokens=20, **seed).choices[0].text for seed in ({"seed": 7}, {"seed": 7}, {}, {})]
    assert texts[0] == texts[1] and texts[2] != texts[3]


def test_log_probabilities(lm, client):
    choice = complete(client, max_tokens=12, logprobs=3, seed=4).choices[0]
    wanted = lm.generate("the ", max_new_tokens=12, logprobs=3, seed=4)
    np.testing.assert_allclose(choice.logprobs.token_logprobs, wanted.logprobs, atol=1e-4)
    for top, chosen, token in zip(choice.logprobs.top_logprobs, choice.logprobs.token_logprobs, choice.logprobs.tokens):
        assert 3 <= len(top) <= 4 and top[token] == chosen
    assert choice.logprobs.text_offset[0] == 0 and sorted(choice.logprobs.text_offset) == choice.logprobs.text_offset


def test_the_prompt_has_log_probabilities_too(lm, client):
    choice = complete(client, "the quick", max_tokens=1, logprobs=1, echo=True, temperature=0).choices[0]
    ids = lm.tokenizer.encode("the quick")
    log_p = np.asarray(lm.model(np.array([ids])))[0]
    log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
    assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.top_logprobs[0] is None
    found = choice.logprobs.token_logprobs[1 : len(ids)]
    np.testing.assert_allclose(found, log_p[np.arange(len(ids) - 1), ids[1:]], atol=1e-3)
    assert choice.text.startswith("the quick") and "".join(choice.logprobs.tokens[: len(ids)]) == "the quick"
    assert choice.logprobs.text_offset[1] == len(choice.logprobs.tokens[0])


def test_stop_strings_end_a_text_and_are_not_in_it(client):
    free = complete(client, max_tokens=40, seed=1, logit_bias=NEVER_END, logprobs=0).choices[0]
    stop = re.search("[ -~]{2}", free.text[3:])[0]
    choice = complete(client, max_tokens=40, seed=1, logit_bias=NEVER_END, stop=stop, logprobs=0).choices[0]
    assert choice.text == free.text[: free.text.index(stop)] and choice.finish_reason == "stop"
    assert choice.logprobs.tokens == free.logprobs.tokens[: len(choice.logprobs.tokens)]
    assert max(choice.logprobs.text_offset, default=0) < max(1, len(choice.text))


def test_best_of_and_the_options_of_generate(lm, client):
    best = complete(client, max_tokens=12, seed=2, n=2, best_of=4, logprobs=1)
    wanted = lm.generate("the ", max_new_tokens=12, seed=2, num_return_sequences=2, best_of=4, logprobs=1)
    assert [choice.text for choice in best.choices] == [result.completion for result in wanted]
    np.testing.assert_allclose(
        best.choices[0].logprobs.token_logprobs, wanted[0].logprobs[: len(best.choices[0].logprobs.tokens)], atol=1e-4
    )
    more = {"top_k": 3, "repetition_penalty": 1.2, "min_new_tokens": 5}
    answer = complete(client, max_tokens=40, seed=2, extra_body=more)
    assert answer.choices[0].text == lm.generate("the ", max_new_tokens=40, seed=2, **more).completion
    lists = {"bad_words_ids": ["th", [5]], "suppress_tokens": [7], "line_length": [10, 0.3], "eos_token_id": [9]}
    assert complete(client, extra_body=lists).usage.completion_tokens <= 16


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "gpt2_jax"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'; there are tiny") as raised:
        client.models.retrieve("other")
    assert raised.value.code == "model_not_found" and raised.value.param == "model"


def test_health_and_what_is_not_there(address):
    with urllib.request.urlopen(f"{address}/health") as answer:
        assert json.loads(answer.read()) == {"status": "ok"}
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"{address}/v1/chat/completions", b"{}")
    with raised.value as error:
        message = json.loads(error.read())["error"]["message"]
    assert message == "there is no POST /v1/chat/completions here; there are /v1/completions and /v1/models"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"model": "x"}, "model", "there is no model 'x'; there are tiny"),
        ({"model": None}, "model", "model is missing; /v1/models lists what is served"),
        ({"prompt": []}, "prompt", r"prompt is \[\]; it must be a text, a list of texts, token ids"),
        ({"prompt": [1, "a"]}, "prompt", r"prompt is \[1, 'a'\]; it must be a text, a list of texts, token ids"),
        ({"prompt": [-1]}, "prompt", "prompt is -1; it must be ids from 0 to the end of the vocabulary"),
        ({"prompt": [9999]}, None, "token id 9999; ids must be from 0 to"),
        ({"prompt": ["a"] * 65}, "prompt", "prompt is 'a list of 65'; it must be at most 64 prompts"),
        ({"suffix": "end"}, "suffix", "suffix is 'end'; GPT-2 continues a text and does not fill in: remove it"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0; it must be from 1 to 4096"),
        ({"max_tokens": 10**9}, "max_tokens", "max_tokens is 1000000000; it must be from 1 to 4096"),
        ({"max_tokens": 500}, "max_tokens", "max_tokens is 500; after a prompt of 1 tokens it must be from 1 to 191"),
        ({"temperature": "hot"}, "temperature", "temperature is 'hot'; it must be a number"),
        ({"temperature": -1}, "temperature", "temperature is -1; it must be 0"),
        ({"top_p": 1.5}, "top_p", r"top_p is 1\.5; it must be in \(0, 1\]"),
        ({"n": 1000}, "n", "n is 1000; it must be from 1 to 64"),
        ({"n": 33, "prompt": ["a", "b"]}, "n", "prompt, n and best_of ask for 66 texts; a request has at most 64"),
        ({"best_of": 99}, "best_of", "best_of is 99; it must be from 1 to 16"),
        ({"best_of": 2, "n": 3}, "best_of", r"best_of is 2; it must be at least n \(3\)"),
        ({"best_of": 2, "stream": True}, "best_of", "best_of is known at the end only; a stream has none: remove one"),
        ({"logprobs": 6}, "logprobs", "logprobs is 6; it must be from 0 to 5"),
        ({"echo": 1}, "echo", "echo is 1; it must be true or false"),
        ({"stop": ["a"] * 5}, "stop", r"stop is \['a', .*; it must be a text or a list of at most 4"),
        ({"stop": "x" * 300}, "stop", "it must be at most 256 bytes together"),
        ({"stop": [""]}, "stop", "stop has an empty string, which would stop everything; give text"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "it must be token ids with numbers from -100 to 100"),
        ({"logit_bias": {"9999": 1}}, "logit_bias", "logit_bias has 9999; it must be a token id from 0 to"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", "it must be of at most 300"),
        ({"stream_options": {"x": 1}}, "stream_options", "it must be {\"include_usage\": true}"),
        ({"stream_options": {}}, "stream_options", "stream_options has no effect without stream; remove one"),
        ({"max_new_tokens": 5}, "max_new_tokens", "max_new_tokens is called 'max_tokens' here"),
        ({"temprature": 1}, "temprature", "there is no field 'temprature'; did you mean 'temperature'"),
        ({"top_k": 2.5}, "top_k", "top_k is 2.5; it must be a whole number"),
        ({"suppress_tokens": "a"}, "suppress_tokens", "it must be a list of at most 300 token ids"),
        ({"bad_words_ids": [[]]}, "bad_words_ids", "bad_words_ids has a phrase without tokens; remove it"),
        ({"line_length": [1]}, "line_length", "it must be two numbers"),
        ({"control": "verse"}, "control", "control is 'verse', which is no control code of this model"),
        ({"early_stopping": 3}, "early_stopping", "it must be true, false or \"never\""),
        ({"num_beams": 2, "temperature": 0, "logprobs": 1}, "logprobs", "which beam search does not take"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_wrong_fields_are_named(address, fields, param, message):
    body = {"model": "tiny", "prompt": "t", **fields}
    status, _, answer = post(address, json.dumps(body).encode())
    assert status == (404 if param == "model" and fields["model"] else 400)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert re.search(message, answer["error"]["message"]), answer
    assert answer["error"]["param"] == param


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b'{"model": NaN}', b'{"a": 1e999}', b'{"model": "tiny", "model": "tiny"}', b"\xff\xfe",
     b'{"a": ' + b"[" * 100_000 + b"}", b'{"prompt": "\\ud800", "model": "tiny"}'],
    ids=lambda body: str(body[:20]),
)  # fmt: skip
def test_what_is_no_json_is_refused(address, body):
    status, _, answer = post(address, body)
    assert status == 400 and answer["error"]["message"].startswith("the body is no JSON: ")


def test_a_body_too_large_is_refused(address):
    status, _, answer = post(address, b'{"prompt": "' + b"a" * openai_api.LARGEST_BODY + b'"}')
    assert status == 413 and answer["error"]["message"] == "the body is larger than 1,048,576 bytes; send less"


def test_the_key_is_asked_for(address):
    for key in ("", "wrong", "sésame"):
        status, headers, answer = post(address, b"{}", key.encode().decode("latin-1"))
        assert (
            status == 401 and headers["WWW-Authenticate"] == "Bearer" and answer["error"]["code"] == "invalid_api_key"
        )
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(f"{address}/v1/models")
    with raised.value as error:
        assert error.code == 401 and "send it as 'Authorization: Bearer KEY'" in error.read().decode()


def test_readers_at_once_get_their_own(lm, client):
    requests = [
        {"seed": seed, "max_tokens": 40, "temperature": 0.5 + seed / 20, "top_k": 3 * seed} for seed in range(24)
    ]
    prompts = [random.Random(seed).choice(["the ", "fox", "dog over", "q"]) for seed in range(24)]

    def ask(prompt, fields):
        options = dict(fields)
        extra = {"top_k": options.pop("top_k")}
        if options["seed"] % 2:
            return "".join(
                chunk.choices[0].text for chunk in complete(client, prompt, stream=True, extra_body=extra, **options)
            )
        return complete(client, prompt, extra_body=extra, **options).choices[0].text

    with ThreadPoolExecutor(24) as pool:
        texts = list(pool.map(ask, prompts, requests))
    for prompt, fields, text in zip(prompts, requests, texts):
        options = {"max_new_tokens" if name == "max_tokens" else name: value for name, value in fields.items()}
        assert text == lm.generate(prompt, **options).completion


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_that_leaves_frees_its_rows(client, models):
    batcher = models["tiny"]
    stream = complete(client, max_tokens=190, n=4, stream=True, logit_bias=NEVER_END)
    next(iter(stream))
    assert sum(seat is not None for seat in batcher._seats) > 1
    stream.close()
    wait_until(lambda: not any(batcher._seats))


def test_a_client_that_gives_up_frees_its_rows(address, models):
    batcher, body = models["tiny"], json.dumps({"model": "tiny", "max_tokens": 190, "n": 30}).encode()
    with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1]))) as connection:
        head = [
            "POST /v1/completions HTTP/1.1",
            "Host: a",
            f"Authorization: Bearer {KEY}",
            f"Content-Length: {len(body)}",
        ]
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
        wait_until(lambda: any(batcher._seats))
    wait_until(lambda: not any(batcher._seats) and not batcher._jobs)


def test_too_many_are_told_to_try_again(client, models):
    blocking = [
        models["tiny"].submit_all("a", max_new_tokens=190, num_return_sequences=60, eos_token_id=[]) for _ in "a"
    ]
    try:
        with pytest.raises(openai.RateLimitError, match="texts wait already, and 64 may; try again later") as raised:
            complete(client, n=30)
        assert raised.value.response.headers["Retry-After"] == "1" and raised.value.code == "rate_limit_exceeded"
    finally:
        [stream.cancel() for streams in blocking for stream in streams]


def test_a_fault_of_the_model_is_no_traceback(client, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(openai_api, "prompt_scores", fail)
    with pytest.raises(openai.InternalServerError, match="the model failed on this request; the server's log says why"):
        complete(client, echo=True, logprobs=1)
    assert "/secret/path" in caplog.text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9) | st.just("tiny"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*completion_request.CHECKS, "other"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(FIELDS, VALUES, max_size=3))
def test_no_body_gives_an_error_of_the_server(lm, fields):
    """Up to the batcher, whose answers are tested above: nothing but `InputError` for what a client sends."""
    body = json.dumps({"model": "tiny", "prompt": "t"} | fields).encode()
    try:
        request = completion_request.read(body)
        for prompt in request.prompts:
            ids, options = request.options_for(lm, prompt)
            make_request([ids], parse(options), lm.tokenizer, lm.config)
    except InputError as error:
        assert str(error)

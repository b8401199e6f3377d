"""The page's server without a browser: what it computes, what it refuses, and that many use it at once."""

import base64
import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import jax
import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from gpt2_jax.app import make_app
from gpt2_jax.page import blocks, guard
from gpt2_jax.page import probabilities as probabilities_tab
from gpt2_jax.page.running import BUSY, FAILED
from gpt2_jax.serving.stream import Busy


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False, analytics_enabled=False)


@pytest.fixture(scope="module")
def http(address):
    with httpx.Client(base_url=address, timeout=30) as client:
        yield client


def refused(client, api_name="/write", **values):
    """The words of the error that a request gets."""
    with pytest.raises(AppError) as caught:
        client.predict(api_name=api_name, **values)
    return str(caught.value)


def test_a_text_is_that_of_generate(client, lms):
    (card,) = client.predict(prompt="def ", seed="7", max_new_tokens=20, model="second", api_name="/write")
    want = lms["second"].generate("def ", seed=7, max_new_tokens=20, temperature=0.8, top_p=0.95)
    assert card["completion"] == want.completion
    assert (card["seed"], card["prompt"], card["model"], card["done"]) == (7, "def ", "second", True)
    assert card["note"].startswith(f"{len(want.tokens) - len(lms['second'].tokenizer.encode('def '))} token")


def test_candidates_have_the_seeds_that_follow(client, lms):
    cards = client.predict(prompt="for ", seed="3", candidates=3, max_new_tokens=12, api_name="/write")
    assert [card["seed"] for card in cards] == [3, 4, 5]
    for card in cards:
        want = lms["first"].generate("for ", seed=card["seed"], max_new_tokens=12, temperature=0.8, top_p=0.95)
        assert card["completion"] == want.completion


def test_an_empty_seed_is_a_new_one_that_gives_the_text_again(client):
    first, second = (client.predict(prompt="a", max_new_tokens=9, api_name="/write")[0] for _ in range(2))
    assert first["seed"] != second["seed"]
    (again,) = client.predict(prompt="a", max_new_tokens=9, seed=str(first["seed"]), api_name="/write")
    assert again == first


def test_beam_search(client, lms):
    (card,) = client.predict(prompt="def add", max_new_tokens=8, method="beams", api_name="/write")
    assert card["completion"] == lms["first"].generate("def add", max_new_tokens=8, num_beams=4).completion


def test_control_codes(client, lms):
    (card,) = client.predict(prompt="a", seed="1", max_new_tokens=8, control="verse", api_name="/write")
    want = lms["first"].generate("a", seed=1, max_new_tokens=8, temperature=0.8, top_p=0.95, control="verse")
    assert card["completion"] == want.completion and card["note"].startswith("8 tokens")
    assert "control is 'prose', which is no control code of this model" in refused(client, prompt="a", control="prose")


def test_a_full_context_is_told(client, lms):
    room = 64 - len(lms["first"].tokenizer.encode("def "))
    values = {"max_new_tokens": 500, "min_new_tokens": 400}
    (card,) = client.predict(prompt="def ", seed="0", **values, api_name="/write")
    assert card["note"] == f"{room} tokens, filled the context of 64"


def test_two_settings_side_by_side(client, lms):
    left, right = client.predict(
        prompt="def ", seed="2", left_max_new_tokens=10, right_model="second", right_max_new_tokens=12,
        right_method="greedy", api_name="/compare",
    )  # fmt: skip
    want = lms["first"].generate("def ", seed=2, max_new_tokens=10, temperature=0.8, top_p=0.95)
    assert left[0]["completion"] == want.completion
    assert right[0]["completion"] == lms["second"].generate("def ", max_new_tokens=12, temperature=0).completion
    assert "right_top_k" not in refused(client, "/compare", prompt="a", seed="0", right_top_k=10**6)


def test_probabilities_are_those_of_the_model(client, lms):
    found = client.predict(text="def add(a", api_name="/probabilities")
    lm = lms["first"]
    ids = lm.tokenizer.encode("def add(a")
    assert len(found["tokens"]) == len(ids)
    logprobs = jax.nn.log_softmax(lm.model([[lm.tokenizer.end_of_text, *ids]])[0])
    for token, row, i in zip(found["tokens"], logprobs, ids):
        assert 2 ** -token["surprisal"] == pytest.approx(float(jax.numpy.exp(row[i])), rel=1e-4)
        assert len(token["top"]) == 10 and token["rank"] >= 1
    whole = client.predict(text="a 山", api_name="/probabilities")["tokens"]
    assert "".join(token["text"].replace("·", "") for token in whole) == "a 山"  # also where bytes are tokens
    assert "text is ''; it must be a text with some letters" in refused(client, "/probabilities", text="")
    assert "text is '8001 characters'" in refused(client, "/probabilities", text="x" * 8001)


def test_attention_is_a_picture_with_words(client):
    for view, words in (("head", "head 1 of layer 1"), ("layer", "all heads of layer 1"), ("kinds", "What kind each")):
        page = client.predict(text="def add(a, b)", view=view, layer=1, head=1, api_name="/attention")
        assert re.fullmatch(
            r'<div class="picture"><img src="data:image/(png|svg\+xml);base64,[\w+/=]+" alt="[^"<>]+"></div>', page
        )
        assert words in page
    assert "layer is 9; it must be from 0 to 1" in refused(client, "/attention", text="ab", layer=9)
    assert "head is 9; it must be from 0 to 1" in refused(client, "/attention", text="ab", head=9)
    assert "view is 'x'; it must be one of head, layer, kinds" in refused(client, "/attention", text="ab", view="x")


def test_captions_are_those_of_the_model(client, lms):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        image = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    (card,) = client.predict(image=image, prompt="a ", max_new_tokens=5, api_name="/caption")
    assert (
        card["completion"] == lms["pictures"].caption(pixels, prompt="a ", max_new_tokens=5, temperature=0).completion
    )
    drawn = {"method": "sample", "temperature": 1.0, "top_p": 1.0, "candidates": 2, "seed": "4"}
    cards = client.predict(image=image, max_new_tokens=5, **drawn, api_name="/caption")
    assert [card["seed"] for card in cards] == [4, 5]
    for card in cards:
        want = lms["pictures"].caption(pixels, seed=card["seed"], max_new_tokens=5, temperature=1.0)
        assert card["completion"] == want.completion
    assert "there is no picture" in refused(client, "/caption", image="")
    assert "the picture is no data URI" in refused(client, "/caption", image="/etc/passwd")
    assert "one that writes captions: pictures" in refused(client, "/caption", image=image, model="first")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_new_tokens": 10**9}, "max_new_tokens is 1000000000; it must be from 1 to 1024 on this page"),
        ({"candidates": 10**6}, "candidates is 1000000; it must be from 1 to 6"),
        ({"num_beams": 10**6, "method": "beams"}, "num_beams is 1000000; it must be from 2 to 8"),
        ({"best_of": "1000000"}, "best_of is 1000000; it must be from 1 to 16"),
        ({"prompt": "x" * 20_001}, "prompt is '20001 characters'; it must be at most 20000 characters on this page"),
        ({"prompt": ["a"]}, "prompt is ['a']; it must be text"),
        ({"prompt": "def " * 100}, "leave room for a new one"),
        ({"seed": "-1"}, "seed is -1; it must be from 0 to 2147483647, or empty for a new one each time"),
        ({"seed": "x"}, "seed is 'x'; it must be a number"),
        ({"model": "../../etc/passwd"}, "model is '../../etc/passwd'; it must be one of first, second, pictures"),
        ({"model": {"a": 1}}, "model is {'a': 1}; it must be one of first, second, pictures"),
        ({"temperature": [1]}, "temperature is [1]; it must be a number"),
    ],
)  # fmt: skip
def test_requests_made_by_hand_are_refused(client, values, words):
    assert words in refused(client, **{"prompt": "a", **values})


def test_a_very_long_request_is_refused(http):
    body = {"data": ["x" * (13 * 2**20)], "session_hash": "a", "fn_index": 0}
    assert http.post("/gradio_api/queue/join", json=body).status_code == 413

    def pieces():
        for _ in range(14):
            yield b"x" * 2**20

    with pytest.raises(httpx.HTTPError):  # broken off, or answered with an error
        http.post("/gradio_api/queue/join", content=pieces()).raise_for_status()


ELSEWHERE = [
    "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../../etc/passwd", "/gradio_api/file/etc/passwd",
    "/file=/etc/passwd", "/gradio_api/file=http://127.0.0.1/", "/gradio_api/proxy=http://127.0.0.1/",
    "/gradio_api/file=C:%5Cwindows%5Cwin.ini", "/gradio_api/file=%2e%2e/%2e%2e/etc/passwd",
    "/static/../../../../../etc/passwd", "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/assets/..%2f..%2f..%2fapp.py",
    "/assets/%2e%2e/%2e%2e/%2e%2e/routes.py", "/svelte/../../routes.py", "/gradio_api/upload_progress?upload_id=a",
    "/gradio_api/deep_link", "/gradio_api/runs", "/gradio_api/vibe-code", "/monitoring", "/monitoring/summary", "/docs",
    "/openapi.json", "/gradio_api/openapi.json", "/gradio_api/custom_component/a/b/c/d", "/gradio_api/dev/reload",
    "/pwa_icon", "/gradio_api/stream/a/b/c/playlist.m3u8",
]  # fmt: skip


@pytest.mark.parametrize("path", ELSEWHERE)
def test_no_path_of_the_server_can_be_read(http, path):
    answer = http.get(path)
    assert answer.status_code in (403, 404), answer.text[:200]
    assert "root:" not in answer.text and "import " not in answer.text


@pytest.mark.parametrize(
    "path", ["upload", "component_server", "process_recording", "vibe-edit", "stream/a", "run-history/connect"]
)
def test_nothing_can_be_sent_but_requests(http, path):
    assert http.post(f"/gradio_api/{path}", files={"files": b"x"}).status_code == 404


def test_what_the_page_says_has_no_path_of_the_server(http, pytestconfig, tmp_path):
    for path in ("/", "/config", "/gradio_api/info"):
        answer = http.get(path)
        assert answer.status_code == 200
        for private in (str(pytestconfig.rootpath), "site-packages", "/tmp/", "/home/", "/root/"):
            assert private not in answer.text, (path, private)
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_an_unforeseen_error_says_nothing_of_the_server(client, models, monkeypatch, caplog):
    def fail(*args, **options):
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(models["first"], "submit", fail)
    words = refused(client, prompt="a")
    assert FAILED in words and "secret" not in words
    assert "/secret/path" in caplog.text  # the operator's log has it


def test_busy_is_told(client, models, monkeypatch):
    def full(*args, **options):
        raise Busy("64 texts wait")

    monkeypatch.setattr(models["first"], "submit", full)
    assert BUSY in refused(client, prompt="a")


def test_requests_beyond_those_that_may_wait_are_told_at_once(models, served, monkeypatch):
    running, go_on = [], threading.Event()

    def slow(*args):
        running.append(args)
        assert go_on.wait(60)
        return original(*args)

    original = probabilities_tab.token_probabilities
    monkeypatch.setattr(probabilities_tab, "token_probabilities", slow)
    monkeypatch.setattr(blocks, "WAITING", 1)
    with served(make_app(models)) as address:
        client = Client(address, verbose=False, analytics_enabled=False)
        ask = lambda: client.submit(text="ab", api_name="/probabilities")
        jobs = [ask(), ask()]
        while len(running) < 2:
            time.sleep(0.02)
        jobs.append(ask())
        while jobs[2].status().code.name != "IN_QUEUE":
            time.sleep(0.02)
        with pytest.raises(Exception, match=r"(?i)queue is full"):
            ask().result(timeout=30)
        go_on.set()
        assert all(job.result(timeout=60)["perplexity"] > 1 for job in jobs)


def test_other_settings_compile_nothing(client):
    client.predict(prompt="def", seed="0", max_new_tokens=10, api_name="/write")
    client.predict(text="def add", api_name="/probabilities")
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if name == "/jax/core/compile/backend_compile_duration" else None
    )
    try:
        jax.jit(lambda x: x * 3.5)(1.0)
        assert len(compiled) == 1  # they are counted
        settings = [
            {"temperature": 0.3}, {"temperature": 1.7, "top_p": 0.5}, {"top_k": 7}, {"min_p": 0.1}, {"typical_p": 0.5},
            {"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"frequency_penalty": 0.5},
            {"max_new_tokens": 33}, {"method": "greedy"}, {"min_new_tokens": 5}, {"epsilon_cutoff": 0.001},
            {"presence_penalty": 1.0, "eta_cutoff": 0.002}, {"candidates": 4}, {"model": "second"},
            {"bad_words_ids": "def"}, {"stop_strings": "x"}, {"line_length": "20, 0.3"},
        ]  # fmt: skip
        for values in settings:
            client.predict(prompt="for i in", **{"max_new_tokens": 10, **values}, api_name="/write")
        client.predict(text="for i in", api_name="/probabilities")
        assert len(compiled) == 1
    finally:
        jax.monitoring.clear_event_listeners()


def test_twenty_readers_get_their_own_texts(address, lms):
    def read(n):
        client = Client(address, verbose=False, analytics_enabled=False)
        values = {"model": ("first", "second")[n % 2], "temperature": 0.5 + n / 20, "max_new_tokens": 10 + n}
        (card,) = client.predict(prompt=f"def f{n}(", seed=str(n), **values, api_name="/write")
        return values, card

    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(read, range(20)))
    for n, (values, card) in enumerate(results):
        options = {"temperature": values["temperature"], "max_new_tokens": values["max_new_tokens"]}
        want = lms[values["model"]].generate(f"def f{n}(", seed=n, top_p=0.95, **options)
        assert (card["seed"], card["prompt"], card["completion"]) == (n, f"def f{n}(", want.completion)


def test_stop_ends_a_text_where_it_is(client, endless):
    job = client.submit(prompt="a", api_name="/write")
    assert endless.started.wait(10)
    time.sleep(0.2)
    client.predict(api_name="/stop")
    (card,) = job.result(timeout=10)
    assert endless.cancelled.is_set()
    assert card["note"] == "stopped" and card["done"] and card["completion"].startswith("word ")


def test_a_reader_who_leaves_is_not_written_for(address, endless):
    with httpx.Client(base_url=address) as reader:
        answer = reader.post("/gradio_api/call/write", json={"data": arguments(reader, prompt="a")})
        with reader.stream("GET", f"/gradio_api/call/write/{answer.json()['event_id']}") as events:
            next(events.iter_lines())
            assert endless.started.wait(10) and not endless.cancelled.is_set()
    assert endless.cancelled.wait(10)


def arguments(reader, **values):
    """What a page would send to /write: all in order, the others as they are at first."""
    parameters = reader.get("/gradio_api/info").json()["named_endpoints"]["/write"]["parameters"]
    return [values.get(p["parameter_name"], p["parameter_default"]) for p in parameters]


def test_a_page_with_a_password_says_nothing_without_it(models, served, monkeypatch):
    monkeypatch.setattr(guard, "SLOW", 0)
    with served(make_app(models, password=("ada", "secret-1815"))) as address:
        for given in (None, ("ada", "1815"), ("eve", "secret-1815")):
            with httpx.Client(base_url=address, auth=given) as reader:
                for path in ("/", "/config", "/gradio_api/info", "/theme.css"):
                    assert reader.get(path).status_code == 401
                assert reader.post("/gradio_api/call/write", json={"data": []}).status_code == 401
        for wrong in ("Basic", "Basic x", "Basic YQ==", "Bearer", "Bearer ada", "secret-1815", "Bearer sécret"):
            assert httpx.get(address, headers={"authorization": wrong.encode()}).status_code == 401
        assert "Watch a GPT-2 write" in httpx.get(address, auth=("ada", "secret-1815")).text
        key = {"authorization": "Bearer secret-1815"}
        client = Client(address, headers=key, verbose=False, analytics_enabled=False)
        assert client.predict(prompt="a", max_new_tokens=3, api_name="/write")[0]["done"]

"""A report of a run, whole and of what is left of one."""

import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys

import jax
import optax
import pytest

from gpt2_jax import Config, GPT2Config, InputError
from gpt2_jax.analysis import run_report, sweep
from gpt2_jax.analysis.run_folder import RunFolder
from gpt2_jax.config import CheckpointConfig
from gpt2_jax.data.prepare import prepare
from gpt2_jax.tokenizer_training import train_bpe
from gpt2_jax.training.checkpoint_writer import CheckpointWriter
from gpt2_jax.training.step import init_state

TEXT = "the quick brown <b>fox</b> jumps over the lazy dog & sleeps\n"
SAMPLES = {0: "qqqq", 20: "the <script>alert(1)</script>\x1b", 10: "the dog"}


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([TEXT], 270)


@pytest.fixture(scope="module")
def workdir(tokenizer, tmp_path_factory):
    """A run of 20 steps whose model is untrained, with prepared text."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    model = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=2, n_head=2)
    (folder.parent / "texts").mkdir()
    for i in range(9):
        (folder.parent / "texts" / f"{i}.txt").write_text(TEXT * (5 + i))
    (folder.parent / "tokenizer.json").write_text(tokenizer.to_json())
    config = Config.from_dict({
        "model": dataclasses.asdict(model), "optimizer": {"warmup_steps": 5},
        "training": {"steps": 30, "sample_prompt": "the "},
        "data": {"source": "files", "paths": str(folder.parent / "texts"), "validation_fraction": 0.3,
                 "tokenizer": str(folder.parent / "tokenizer.json")},
    })  # fmt: skip
    state = jax.jit(lambda: init_state(config.model, optax.identity(), 0))()
    with CheckpointWriter(folder, CheckpointConfig()) as checkpoints:
        checkpoints.save(state._replace(step=state.step + 20), config.to_dict(), tokenizer.to_json(), 1.0)
        checkpoints.wait()
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    prepare(config.data, folder / "data")
    lines = [{"step": step, "sample": text} for step, text in SAMPLES.items()]
    lines += [{"step": 10 * i, "train_loss": 5 - i, "val_loss": 5 - i, "val_bits_per_byte": 2.0} for i in range(3)]
    lines += [{"step": 20, "time/training": 0.8, "time/data_wait": 0.2}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A report as scripts/evaluate.py writes it."""
    model = {"path": "small", "step": 20, "revision": None, "parameters": 1}
    figures = {"perplexity": {"value": 7.5, "standard_error": 0.5}}
    report = {"format": 1, "task": "perplexity", "protocol": "a <b> text", "model": model, "figures": figures}
    folder = tmp_path_factory.mktemp("reports")
    report |= {"counts": {"tokens": 5}, "seconds": 1.5, "device": "cpu", "options": {}}
    (folder / "perplexity-small.json").write_text(json.dumps(report))
    return folder


@pytest.fixture(scope="module")
def made(workdir, evaluated, tmp_path_factory):
    """The page of the whole run, and what was told."""
    told = []
    page = run_report.report(workdir, evaluations=[evaluated], tell=told.append)
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page)
    return page, told, file


def sections(page):
    """{title: its HTML}."""
    parts = re.split(r'<details class="section" id="[\w-]+" open>\s*<summary><h2>(.*?)</h2></summary>', page)
    return dict(zip(parts[1::2], parts[2::2]))


def why(page):
    """{title: why it is left out}."""
    found = {
        title: re.search(r'^<p class="left-out">Left out: (.*?)</p>', text.strip()) for title, text in page.items()
    }
    return {title: html.unescape(match[1]) for title, match in found.items() if match}


def test_every_section_is_there_and_listed(made):
    page, told, _ = made
    found = sections(page)
    assert list(found) == list(run_report.SECTIONS) and why(found) == {}
    assert re.findall(r'<a href="#([\w-]+)">', page) == re.findall(r'class="section" id="([\w-]+)"', page)
    assert [line.split(": ")[0] for line in told if not line.startswith(" ")] == [
        f"{i}/10 {title.lower()}" for i, title in enumerate(run_report.SECTIONS, 1)
    ]
    assert sum(line.startswith("  ") for line in told) == 9  # settings of the small sweep


def test_it_needs_no_other_file_and_shows_texts_as_they_are(made):
    page, _, _ = made
    assert len(page) < 10_000_000
    assert "<script" not in page and "<b>fox" not in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page) and "@import" not in page and "url(" not in page
    assert "the &lt;script&gt;alert(1)&lt;/script&gt;\\x1b" in sections(page)["Samples over time"]


def test_what_it_says_of_the_run(made, workdir):
    found = sections(made[0])
    plain = lambda part: " ".join(html.unescape(re.sub(r"<[^>]*>", " ", part)).split())
    overview = plain(found["Overview"])
    assert "Checkpoint step 20 " in overview and "Steps 20 of 30 " in overview
    assert "Tokens 5,120 " in overview  # 20 steps of 8 sequences of 32 tokens
    assert "Lowest validation loss 3.0000 nats a token, perplexity 20.09, at step 20" in overview
    assert "training 80.0 %, data wait 20.0 %" in overview
    changed = re.findall(r'<td class="option">([\w.]+)</td>', found["Configuration"].split("<details>")[0])
    assert {"model.n_layer", "data.source", "training.steps"} < set(changed) and "model.vocab_size" not in changed
    assert "optimizer steps in all; a resumed run goes on to the same number." in found["Configuration"]
    assert "h.attn.c_attn.kernel 2 x 16 x 3 x 16 1,536" in plain(found["Parameters"])
    assert "rows of the embeddings 114 are padding" in plain(found["Parameters"])
    assert [int(step) for step in re.findall(r">step (\d+)<", found["Samples over time"])] == [0, 10, 20]
    assert found["Attention"].count("<img ") == 5 and "of which nothing was learnt" in found["Attention"]
    assert 'class="token-probabilities"' in found["Probabilities"]
    assert "texts of each setting; settings: 9." in found["Diversity"] and found["Diversity"].count("<img ") == 2
    assert found["Side by side"].count('<th scope="row">') == 2 * 3
    evaluation = plain(found["Evaluation"])
    assert "all 20 3.0000 20.09 2.0000" in evaluation and "Bits per byte" in evaluation
    assert "perplexity: a <b> text perplexity 7.5 ± 0.5" in evaluation


def test_what_is_missing_is_said_and_the_rest_is_made(workdir, tmp_path):
    left = tmp_path / "left"
    left.mkdir()
    (left / "metrics.jsonl").write_text('{"step": 1, "train_loss": 3.0}\n')
    reasons = why(sections(run_report.report(left, tell=lambda line: None)))
    assert list(reasons) == [title for title in run_report.SECTIONS if title not in ("Training curves", "Evaluation")]
    assert "config.json is no config of a run (No such file or directory); give the folder" in reasons["Configuration"]
    assert reasons["Attention"] == f"{left} has no checkpoints: the run has saved none yet; look again when it has"
    assert reasons["Samples over time"].startswith("the run kept no samples; training.sample_tokens says")


def test_a_run_that_streams_needs_a_text(workdir, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(run / "data")
    material = lambda **own: run_report.sections.Material(
        RunFolder(run), model, 20, own.get("text", ""), (), None, (), 1.0, 64, print
    )
    from gpt2_jax import load

    model = load(run)
    assert material(text="the dog").text == ("the dog", "The text that was given.")
    assert material().text == (SAMPLES[20], "The run's last sample: it has no validation text at hand.")
    assert material().prompts == ["the "]
    with pytest.raises(
        InputError, match=r"data holds no prepared tokens, as of a run that streams; give a text of your"
    ):
        material().held_out  # noqa: B018
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="the run has no validation text and no sample; give one with --text"):
        material().text  # noqa: B018


def test_validation_text_is_that_of_all_sources(tokenizer, workdir, tmp_path):
    run = shutil.copytree(workdir, tmp_path / "run")
    (run / "data" / "first").mkdir()
    for file in list(run.glob("data/*.*")):
        file.rename(run / "data" / "first" / file.name)
    shutil.copytree(run / "data" / "first", run / "data" / "second")
    one, both = (RunFolder(run).held_out(tokenizer, most) for most in (10**6, 20))
    assert len(one) % 2 == 0 and one[: len(one) // 2] == one[len(one) // 2 :] and TEXT in one[0]
    assert [len(tokenizer.encode(text)) for text in both] == [10, 10]


def test_an_own_sweep_and_the_time_of_a_small_one(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, "SECTIONS", {"Diversity": run_report.SECTIONS["Diversity"]})
    page = run_report.report(workdir, seconds=0.0, tell=lambda line: None)
    assert "settings: 2. It ended after 0 seconds; --seconds gives it more." in page
    setting = sweep.PLAIN | {"max_new_tokens": 5}
    for i, top_k in enumerate((0, 5)):
        figures = {"perplexity": 5.0 + i, "distinct_2": 0.5, "self_bleu": 0.1}
        result = sweep.Result(f"top_k={top_k}", setting | {"top_k": top_k}, False, figures, [])
        (tmp_path / "settings").mkdir(exist_ok=True)
        (tmp_path / "settings" / f"{i}.json").write_text(json.dumps(dataclasses.asdict(result)))
    page = run_report.report(workdir, sweep=tmp_path, tell=lambda line: None)
    assert f"Of the sweep in {tmp_path}." in page and "<td>top_k=5</td>" in page


def test_of_many_samples_some_are_shown(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, "SECTIONS", {"Samples over time": run_report.SECTIONS["Samples over time"]})
    lines = [json.dumps({"step": step, "sample": f"text {step}"}) for step in range(100)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    page = run_report.report(tmp_path, tell=lambda line: None)
    steps = [int(step) for step in re.findall(r">step (\d+)<", page)]
    assert len(steps) == 12 and (steps[0], steps[-1]) == (0, 99) and "12 of 100 samples, evenly over the run." in page


def test_what_is_no_run_or_no_report(tmp_path, monkeypatch):
    message = r"has no config\.json, metrics\.jsonl or checkpoints; give the folder of a run"
    with pytest.raises(InputError, match=message):
        run_report.report(tmp_path)
    with pytest.raises(InputError, match="tokens is -1; it must be at least 0, where 0 evaluates nothing"):
        run_report.report(tmp_path, tokens=-1)
    monkeypatch.setattr(run_report, "SECTIONS", {"Evaluation": run_report.SECTIONS["Evaluation"]})
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "val_loss": 3.0}\n')
    (tmp_path / "other.json").write_text('{"task": "perplexity"}')
    page = run_report.report(tmp_path, evaluations=[tmp_path / "other.json"], tell=lambda line: None)
    assert "other.json is no report of an evaluation; give what scripts/evaluate.py wrote, or evaluate again" in page
    page = run_report.report(tmp_path, evaluations=[tmp_path], tell=lambda line: None)
    assert "has no report of an evaluation; give a file or folder of scripts/evaluate.py" in page
    (tmp_path / "config.json").write_text('{"model": 1}')
    with pytest.raises(InputError, match=r"config of a run \(it has options outside of groups\); give the folder of"):
        RunFolder(tmp_path).config  # noqa: B018


def test_the_script_writes_into_the_workdir_and_says_what_is_wrong(workdir, tmp_path, pytestconfig):
    left = tmp_path / "left"
    left.mkdir()
    (left / "metrics.jsonl").write_text('{"step": 1, "train_loss": 3.0}\n')
    command = [sys.executable, str(pytestconfig.rootpath / "scripts/report.py")]
    result = subprocess.run([*command, f"--workdir={left}"], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.splitlines()[-1] == f"{left / 'report.html'}", result.stderr
    assert f"6/10 attention: left out: {left} has no checkpoints" in result.stdout
    assert (left / "report.html").read_text().startswith("<!DOCTYPE html>")
    result = subprocess.run([*command, f"--workdir={left}", "--output=a.pdf"], capture_output=True, text=True)
    wrong = "error: output is 'a.pdf'; it must be a file with the suffix .html, which decides the format"
    assert (result.returncode, result.stderr.strip()) == (2, wrong)


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_in_a_browser(made, browser, width, scheme):
    """Nothing is asked for or complained of, nothing is wider than the screen, and a section folds."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=True)
    asked, said = [], []
    page.on("request", lambda request: asked.append(request.url) if not request.url.startswith("data:") else None)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    address = made[2].as_uri()
    page.goto(address)
    assert asked == [address] and said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("details.section > summary").count() == 10
    assert all(page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)"))
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 28)"
    assert dark == (scheme == "dark")
    picture = page.locator("#training-curves img")
    assert picture.is_visible()
    page.locator("#training-curves > summary").click()
    assert not picture.is_visible()
    page.get_by_role("link", name="Diversity").click()
    assert page.url.endswith("#diversity") and said == []
    page.close()

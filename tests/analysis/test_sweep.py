import csv
import json
import math

import jax
import numpy as np
import pytest

from gpt2_jax import Generation, InputError, LanguageModel
from gpt2_jax.analysis import quality
from gpt2_jax.analysis.diversity import words
from gpt2_jax.analysis.sweep import FACTORS, PLAIN, Sweep, name_of, run
from gpt2_jax.generation import sampler
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.tokenizer_training import train_characters

TEXT = "the quick brown fox jumps over the lazy dog\n"
PROMPTS = ["the ", "a lazy fox ", "q"]
FEW = {"temperature": (0.5, 1.0), "top_k": (5,), "top_p": (0.9,), "repetition_penalty": (1.2,), "max_new_tokens": (20,)}


@pytest.fixture(scope="module")
def lm():
    tokenizer = train_characters([TEXT])
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.3
    )
    return LanguageModel(jax.jit(GPT2, static_argnums=0)(config, jax.random.key(0)), tokenizer)


def quiet(line):
    pass


def programs():
    return sampler.fill._cache_size() + sampler.advance._cache_size()


def test_one_factor_at_a_time_or_all_combinations():
    sweep = Sweep()
    settings = sweep.settings()
    assert len(settings) == 1 + 3 + 3 + 3 + 2 + 2 == len({name_of(s) for s in settings})
    assert settings[0] == PLAIN | {"max_new_tokens": 50}
    for setting in settings:
        assert sum(setting[f] != settings[0][f] for f in FACTORS) <= 1 and setting.keys() == set(FACTORS)
    lengths = [s["max_new_tokens"] for s in settings]
    assert lengths == sorted(lengths) and set(lengths) == {50, 200, 500}
    grid = Sweep(grid=True).settings()
    assert len({name_of(s) for s in grid}) == len(grid) == 4 * 3 * 3 * 3 * 3
    assert name_of(PLAIN | {"top_p": 0.9, "max_new_tokens": 50}) == "top_p=0.9 max_new_tokens=50"


def test_other_settings_of_a_length_compile_nothing(lm, tmp_path):
    """Of the first setting's two programs all others are made, whatever the number of prompts."""
    counts = []
    sweep = Sweep(**FEW | {"batch_size": 8, "samples": 2, "max_new_tokens": (20, 90)})
    run(lm, PROMPTS, sweep, tmp_path, tell=lambda line: counts.append(programs()))
    assert len(counts) == 6 and len(set(counts[:5])) == 1
    assert counts[5] > counts[4]  # a longer cache, and texts that are read anew as they slide


@pytest.fixture(scope="module")
def swept(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    sweep = Sweep(**FEW | {"batch_size": 8, "samples": 3})
    return folder, run(lm, PROMPTS, sweep, folder, judge=lm, references=[TEXT, TEXT[4:], TEXT[::-1]], tell=quiet)


def test_the_samples_are_those_of_generate(lm, swept):
    _, results = swept
    for result in (results[0], results[-1]):
        sample = result.samples[4]  # the second of the second prompt
        assert sample["prompt"] == PROMPTS[1] and sample["seed"] == 1
        alone = lm.generate([PROMPTS[1]] * 8, seed=[1, *range(7)], logprobs=0, **result.setting)[0]
        assert alone.completion == sample["completion"] and alone.stop_reason == sample["stop_reason"]
        assert sample["logprob"] == pytest.approx(alone.logprobs.mean(), abs=1e-5)


def test_the_figures_are_those_of_the_samples(swept):
    _, results = swept
    for result in results:
        metrics, samples = result.metrics, result.samples
        total = sum(sample["logprob"] * sample["tokens"] for sample in samples if sample["tokens"])
        tokens = sum(sample["tokens"] for sample in samples)
        assert metrics["perplexity"] == pytest.approx(math.exp(-total / tokens), rel=1e-4)
        assert metrics["judged_perplexity"] == pytest.approx(metrics["perplexity"], rel=1e-3)  # it judges itself
        assert metrics["tokens"] == pytest.approx(tokens / len(samples))
        everything = [word for sample in samples for word in words(sample["completion"])]
        assert metrics["distinct_1"] == pytest.approx(len(set(everything)) / len(everything))
        assert 0 <= metrics["mauve"] <= 1 and 0 <= metrics["self_bleu"] <= 1
    cold, plain = (next(r for r in results if r.setting["temperature"] == t) for t in (0.5, 1.0))
    assert cold.metrics["perplexity"] < plain.metrics["perplexity"]


def test_the_tables_and_files_hold_all(swept):
    folder, results = swept
    lines = (folder / "table.md").read_text().splitlines()
    assert lines[0].startswith("| setting | perplexity | judged_perplexity | distinct_1 |") and len(lines) == 2 + 5
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [float(row["perplexity"]) for row in rows] == [result.metrics["perplexity"] for result in results]
    stored = json.loads((folder / "results.json").read_text())
    assert [r["name"] for r in stored] == [r.name for r in results] and len(stored[0]["samples"]) == 9


def test_a_stopped_sweep_goes_on_and_takes_more_values(lm, tmp_path):
    sweep = Sweep(**FEW | {"samples": 2, "batch_size": 8})

    def stop(line):
        if line.startswith("2/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(lm, PROMPTS, sweep, tmp_path, tell=stop)
    assert len(list((tmp_path / "settings").iterdir())) == 2
    lines = []
    more = Sweep(**FEW | {"samples": 2, "batch_size": 8, "top_k": (5, 3)})
    results = run(lm, PROMPTS, more, tmp_path, tell=lines.append)
    assert [line.endswith("done before") for line in lines] == [True, True, False, False, False, False]
    assert len(results) == 6 and not list(tmp_path.rglob("*.unfinished"))
    name = tmp_path / "settings" / "max_new_tokens=20.json"
    name.write_text("{")  # damaged: made again
    assert run(lm, PROMPTS, more, tmp_path, tell=lines.append)[0] == results[0]


def test_a_folder_of_another_sweep_is_refused(lm, swept, tmp_path):
    folder, _ = swept
    sweep = Sweep(**FEW | {"seed": 1, "samples": 3})
    with pytest.raises(InputError, match="has a sweep with another value of judge, prompts, references, seed; its"):
        run(lm, PROMPTS[:1], sweep, folder, tell=quiet)
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(InputError, match=r"sweep.json cannot be read .*; give another folder for this sweep"):
        run(lm, PROMPTS, sweep, tmp_path, tell=quiet)


def test_lengths_beyond_the_context_slide_or_are_left_out(lm, tmp_path):
    some = FEW | {"temperature": (0.1,), "max_new_tokens": (20, 90), "grid": True, "samples": 2, "batch_size": 8}
    lines = []
    results = run(lm, PROMPTS, Sweep(**some, beyond_context="skip"), tmp_path / "skip", tell=lines.append)
    assert [r.setting["max_new_tokens"] for r in results] == [20]
    assert lines[0] == "left out: 1 settings of [90] tokens, for the context is 64"
    results = run(lm, PROMPTS, Sweep(**some), tmp_path, tell=lines.append)
    assert [r.slid for r in results] == [False, True] and "90 (slides): " in lines[-1]
    assert max(sample["tokens"] for sample in results[-1].samples) == 90
    with pytest.raises(InputError, match="no setting fits the model's context of 64 tokens after the longest prompt"):
        run(lm, PROMPTS, Sweep(max_new_tokens=(90,), beyond_context="skip"), tmp_path / "none", tell=quiet)


def test_figures_that_cannot_be_computed_are_none(lm):
    short = Generation("the x", "x", np.array([1, 2, 3, 4, 5]), "length", logprobs=np.array([-1.0]))
    metrics = quality.measure([[short]])
    assert metrics["self_bleu"] is metrics["repetition_4"] is metrics["zipf"] is None
    assert metrics["tokens"] == 1 and metrics["perplexity"] == pytest.approx(math.e)
    assert quality.mauve_score(lm, ["a", ""], ["b", "c"]) is None
    assert quality.judged_perplexity(lm, ["a"], [""]) is None
    table = quality.markdown({"x": {"perplexity": 2.0, "zipf": None}, "y": {"perplexity": None, "zipf": None}})
    assert table.splitlines() == ["| setting | perplexity |", "| --- | ---: |", "| x | 2.00 |", "| y |  |"]


def test_a_long_completion_is_judged_in_parts(lm):
    text = TEXT * 3
    ids = np.array(lm.tokenizer.encode(text))
    found = quality.judged_perplexity(lm, ["fox "], [text])
    before = lm.tokenizer.encode("fox ")
    sequence, total = np.array([*before, *ids]), 0.0
    log_softmax = jax.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)))
    for start in range(0, len(ids), 32):
        cut = start + len(before)
        window = sequence[max(0, cut - 32) : cut + 32]
        new = len(sequence[cut : cut + 32])
        padded = np.pad(window, (0, 64 - len(window)))
        log_p = log_softmax(lm.model, padded[None])[0]
        total += sum(float(log_p[i - 1, window[i]]) for i in range(len(window) - new, len(window)))
    assert found == pytest.approx(math.exp(-total / len(ids)), rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": ()}, r"top_k is \(\); it must be a list of at least one value"),
        ({"top_p": (0.9, 0.9)}, r"top_p is \(0.9, 0.9\); it must be a list of different values"),
        ({"temperature": (0, 1)}, r"temperature is \(0, 1\); it must be above 0: greedy decoding has one text"),
        ({"samples": 0}, "samples is 0; it must be a whole number, at least 1"),
        ({"batch_size": 1.5}, "batch_size is 1.5; it must be a whole number, at least 1"),
        ({"beyond_context": "cut"}, "beyond_context is 'cut'; it must be 'slide' or 'skip'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(InputError, match=message):
        Sweep(**options)


def test_no_prompts_and_a_full_disk(lm, tmp_path):
    with pytest.raises(InputError, match="the number of prompts is 0; it must be at least 1"):
        run(lm, [], Sweep(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"sweep.json cannot be written \(Not a directory\); make room and run again"):
        run(lm, ["a"], Sweep(), tmp_path / "file" / "folder")

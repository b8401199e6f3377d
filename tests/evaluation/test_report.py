import json
import math

import pytest

from gpt2_jax import InputError
from gpt2_jax.evaluation import published, report
from gpt2_jax.evaluation.outcome import Figure, Outcome
from gpt2_jax.evaluation.perplexity import Perplexity
from gpt2_jax.evaluation.tasks import TASKS, find, outcome_of

OUTCOME = Outcome({"accuracy": Figure(0.25, math.nan), "perplexity": Figure(math.inf, math.inf)}, {"passages": 4})
MODEL = {
    "path": "runs/mine", "step": 300, "revision": None, "parameters": 1234, "n_layer": 1, "n_head": 1, "n_embd": 4,
    "n_positions": 8, "vocab_size": 9, "dtype": "float32",
}  # fmt: skip
PUBLISHED = set(TASKS) - {"perplexity", "control", "captions", "humaneval", "syntax"}  # own texts; nobody has of code


def a_report(task="lambada", outcome=OUTCOME, model=MODEL):
    return report.make(find(task), outcome, model, {"limit": 4, "stride": None}, 1.5)


def test_files_are_strict_json_and_markdown(tmp_path):
    files = report.write(tmp_path / "reports", a_report())
    assert [file.name for file in files] == ["lambada-runs_mine-300.json", "lambada-runs_mine-300.md"]

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(files[0].read_text(), parse_constant=refuse)
    assert content["figures"]["accuracy"] == {"value": 0.25, "standard_error": None}
    assert content["figures"]["perplexity"]["value"] is None and content["counts"] == {"passages": 4}
    assert content["versions"]["jax"] and content["seconds"] == 1.5 and content["model"] == MODEL
    assert content["published"][0]["gpt2"] == 0.4599
    text = files[1].read_text()
    assert "| accuracy | 25.00 % | none | 45.99 % | 55.48 % | 60.12 % | 63.24 % |" in text
    assert "Model: `runs/mine`, step 300, 1,234 parameters, float32." in text and "expected, not run here" in text
    assert "limit 4" in text and "stride" not in text


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(.*\); give another folder"):
        report.write(tmp_path / "file", a_report())


def test_what_is_printed_stands_beside_what_was_published():
    result = Perplexity(
        nats=3000, nats_error=30, documents=1, windows=9, tokens=1000, words=800, line_ends=0, characters=1, bytes=4000
    )
    outcome = outcome_of(result)
    shown = "\n".join(report.lines(a_report("wikitext103", outcome)))
    assert "word_perplexity           42.52 ± 1.59" in shown
    assert "published: gpt2 37.50, gpt2-medium 26.37, gpt2-large 22.05, gpt2-xl 17.48 (Radford et al., 2019" in shown
    assert "1 documents, 9 windows, 1,000 tokens, 800 words" in shown


def test_the_table_has_every_task_and_the_reports_beside(tmp_path):
    report.write(tmp_path, a_report())
    report.write(tmp_path, a_report(model=MODEL | {"step": 600}, outcome=Outcome({"accuracy": Figure(0.5, 0.1)}, {})))
    (tmp_path / "other.json").write_text('{"format": "of another program"}')
    reports = report.read(tmp_path)
    assert len(reports) == 2
    rows = report.table(reports)
    assert rows[0] == "| task | figure | gpt2 | gpt2-medium | gpt2-large | gpt2-xl | runs_mine-300 | runs_mine-600 |"
    assert "| lambada | accuracy | 45.99 % | 55.48 % | 60.12 % | 63.24 % | 25.00 % | 50.00 % |" in rows
    assert {row.split(" | ")[0].strip("| ") for row in rows[2:] if row.startswith("|")} == PUBLISHED
    assert any("expected, not run here" in row for row in rows)
    assert report.table([])[0].endswith("| gpt2-xl |")
    (tmp_path / "damaged.json").write_text("{")
    with pytest.raises(InputError, match=r"damaged\.json is no report of an evaluation \(.*\); give what"):
        report.read(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        {"figures": {"accuracy": 1.0}}, {"figures": {"accuracy": {"value": "1"}}}, {"counts": {"passages": None}},
        {"model": {}}, {"model": {"path": 1}}, {"model": {"path": "a", "step": "b"}}, {"seconds": None}, {"device": 1},
        {"protocol": None}, {"figures": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_report_that_lacks_what_is_shown_is_damaged(tmp_path, damage):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(a_report() | damage))
    for path in (file, tmp_path):
        with pytest.raises(InputError, match=r"report\.json is a damaged report; give what scripts/evaluate\.py wrote"):
            report.read(path)


def test_texts_of_ones_own_have_a_report_each(tmp_path):
    for data in ("poems/*.txt", "~/stories.jsonl"):
        made = report.make(find("perplexity"), OUTCOME, MODEL, {"data": data}, 1.0)
        report.write(tmp_path, made)
    names = ["perplexity-poems_.txt-runs_mine-300.json", "perplexity-stories.jsonl-runs_mine-300.json"]
    assert sorted(file.name for file in tmp_path.glob("*.json")) == names


def test_published_figures_are_of_tasks_that_are_there():
    assert {row.task for row in published.TABLE} == PUBLISHED
    assert published.rows("ptb")[0].of("gpt2-xl") == 35.76
    assert all(len(row.values) == len(published.MODELS) for row in published.TABLE)


def test_a_model_is_described(lm):
    described = report.describe(lm, "somewhere", None, "main")
    assert described["path"] == "somewhere" and described["revision"] == "main" and described["n_layer"] == 1
    assert described["parameters"] > 1000

"""lm-evaluation-harness on a model of ours, on tasks of its own kind in local files."""

import json
import math

import numpy as np
import pytest

import gpt2_jax
from gpt2_jax import InputError

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval (the extra eval)")
Instance = pytest.importorskip("lm_eval.api.instance").Instance
TaskManager = pytest.importorskip("lm_eval.tasks").TaskManager
harness = pytest.importorskip("gpt2_jax.evaluation.harness")

QUESTIONS = [
    {"question": "the quick brown", "choices": ["fox", "dog", "rains"], "answer": 0},
    {"question": "it rains in", "choices": ["spain", "the"], "answer": 1},
]
LONG = "the lazy dog jumps over the quick brown fox, " * 4
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
"""
CHOICE = (
    TASK
    + """
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
)
GENERATE = (
    TASK
    + """
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: [",", "."], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
)


def chain(naive, ids, continuation):
    table = naive([*ids, *continuation][:-1])[len(ids) - 1 :]
    return table[np.arange(len(continuation)), continuation].sum()


@pytest.fixture(scope="module")
def model(lm):
    return harness.Harness(lm, batch_size=2)


def test_tasks_of_the_harness(model, lm, naive, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (tmp_path / "choice.yaml").write_text(CHOICE.format(name="a_choice", data=data, kind="multiple_choice"))
    (tmp_path / "generate.yaml").write_text(GENERATE.format(name="a_text", data=data, kind="generate_until"))
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model, tasks=["a_choice", "a_text"], task_manager=tasks, bootstrap_iters=0, log_samples=True
    )
    right = []
    for question in QUESTIONS:
        context = lm.tokenizer.encode(question["question"])
        texts = [f"{question['question']} {choice}" for choice in question["choices"]]
        ids = [lm.tokenizer.encode(text)[len(context) :] for text in texts]
        right.append(np.argmax([chain(naive, context, rest) for rest in ids]) == question["answer"])
    assert found["results"]["a_choice"]["acc,none"] == np.mean(right)
    for sample, question in zip(found["samples"]["a_text"], QUESTIONS):
        wanted = lm.generate(question["question"], max_new_tokens=6, temperature=0, stop_strings=[",", "."])
        assert sample["resps"] == [[wanted.completion]]


def request(kind, *args):
    return Instance(request_type=kind, doc={}, arguments=args, idx=0)


def test_log_likelihoods_of_whole_texts(model, lm, naive):
    first, second = model.loglikelihood_rolling([request("loglikelihood_rolling", t) for t in (LONG, "a fox")])
    ids, context, wanted = lm.tokenizer.encode(LONG), lm.config.n_positions, 0.0
    for start in range(0, len(ids), context):
        # The last window reaches back as far as the context does.
        end = min(start + context, len(ids))
        before = ([lm.tokenizer.end_of_text, *ids])[max(0, end - context) : start + 1]
        wanted += chain(naive, before, ids[start:end])
    assert first == pytest.approx(wanted, rel=1e-5)
    assert second == pytest.approx(chain(naive, [lm.tokenizer.end_of_text], lm.tokenizer.encode("a fox")), rel=1e-5)
    ((total, greedy),) = model.loglikelihood([request("loglikelihood", "", "a fox")])
    assert total == pytest.approx(second, rel=1e-5) and isinstance(greedy, bool) and math.isfinite(total)


def test_it_opens_a_model_by_its_path(lm, tmp_path):
    folder = gpt2_jax.save(lm, tmp_path / "model")
    made = lm_eval.api.registry.get_model("gpt2_jax").create_from_arg_string(
        f"path={folder},dtype=float32", {"batch_size": 3, "device": "cuda:0", "max_batch_size": None}
    )
    assert made.batch_size == 3 and made.max_length == 32 and made.eot_token_id == lm.tokenizer.end_of_text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either a model or its path (--model_args path=runs/mine)"),
        ({"path": "x", "batch_size": "auto"}, "batch_size is 'auto'; it must be a number of at least 1"),
        ({"path": "x", "max_batch_size": 4}, "max_batch_size is 4; leave it out"),
    ],
)
def test_what_it_does_not_take(options, message):
    with pytest.raises(InputError) as caught:
        harness.Harness(**options)
    assert str(caught.value).startswith(message)


def test_options_of_generation(model):
    assert harness.generation_options({"until": "\n", "do_sample": False, "temperature": 0.0, "max_gen_toks": 4}) == {
        "max_new_tokens": 4, "stop_strings": ["\n"], "temperature": 0,
    }  # fmt: skip
    assert harness.generation_options({"do_sample": True, "temperature": 0.7, "top_p": 0.9, "until": ["", "x"]}) == {
        "max_new_tokens": 256, "temperature": 0.7, "top_p": 0.9, "stop_strings": ["x"],
    }  # fmt: skip
    with pytest.raises(InputError, match=r"a task generates with top_kk=3, which is no option; did you mean 'top_k'\?"):
        harness.generation_options({"top_kk": 3})
    with pytest.raises(InputError, match=r"a task asks for 32 new tokens and the model's context is 32; lower it"):
        model.generate_until([request("generate_until", "a", {"max_gen_toks": 32})])

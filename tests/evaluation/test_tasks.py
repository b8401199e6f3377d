import dataclasses

import pytest

from gpt2_jax import InputError
from gpt2_jax.evaluation.logprobs import spread
from gpt2_jax.evaluation.outcome import Figure, Settings, perplexity_of, share
from gpt2_jax.evaluation.perplexity import perplexity
from gpt2_jax.evaluation.tasks import TASKS, find

LINES = "the fox jumps over the dog\nit rains in spain again\n"
WIKITEXT = " \n = Dog = \n \n the dog 's fox , again . \n"


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "data"
        path.write_text(content)
        return str(path)

    return write


def test_texts_are_counted_as_published(lm, file):
    for name, content, counted in (
        ("wikitext2", WIKITEXT, "token_perplexity"),
        ("wikitext103", WIKITEXT, "word_perplexity"),
        ("ptb", LINES, "word_perplexity"),
        ("1bw", LINES, "word_perplexity"),
        ("enwik8", LINES, "bits_per_byte"),
        ("text8", LINES, "bits_per_character"),
    ):
        outcome = find(name).run(lm, file(content), Settings(batch_size=2))
        assert counted in outcome.figures and outcome.counts["words"] in (10, 11), name
        assert all(figure.value > 0 for figure in outcome.figures.values())


def test_what_wikitext103_reports(lm, file):
    outcome = find("wikitext103").run(lm, file(WIKITEXT), Settings(context=8, stride=4))
    result = perplexity(lm, ["\n= Dog =\n\nthe dog's fox, again.\n"], context=8, stride=4)
    assert outcome.figures["token_perplexity"].value == pytest.approx(result.per(result.tokens)[0], rel=1e-6)
    assert outcome.figures["word_perplexity"].value == pytest.approx(result.per(10)[0], rel=1e-6)
    assert outcome.figures["word_and_line_perplexity"].value == pytest.approx(result.per(14)[0], rel=1e-6)
    assert outcome.figures["bits_per_byte"].value == pytest.approx(result.bits_per(len(WIKITEXT))[0], rel=1e-6)
    raw = find("wikitext103").run(lm, file(WIKITEXT), Settings(detokenize=False))
    assert raw.counts["tokens"] > outcome.counts["tokens"]


def test_texts_of_your_own(lm, tmp_path):
    (tmp_path / "a.txt").write_text("the fox jumps\n")
    (tmp_path / "b.txt").write_text("it rains")
    (tmp_path / "c.jsonl").write_text('{"prompt": "in ", "completion": "spain"}\n')
    outcome = find("perplexity").run(lm, str(tmp_path))
    expected = perplexity(lm, ["the fox jumps\n", "it rains", "in spain"])
    assert outcome.counts["documents"] == 3
    assert outcome.figures["bits_per_byte"].value == pytest.approx(expected.bits_per(expected.bytes)[0], rel=1e-6)
    assert find("perplexity").run(lm, str(tmp_path), Settings(limit=2)).counts["documents"] == 2
    with pytest.raises(InputError, match="there is no --data; give files or folders of text, or of records with"):
        find("perplexity").run(lm)


def test_eight_devices_and_a_limit(lm, file):
    data = file(LINES)
    one, all_of_them = (find("lambada_openai").run(model, data, Settings(batch_size=2)) for model in (lm, spread(lm)))
    for name, figure in one.figures.items():
        assert figure.value == pytest.approx(all_of_them.figures[name].value, rel=1e-5)
    assert find("lambada_openai").run(lm, data, Settings(limit=1)).counts["passages"] == 1
    assert find("1bw").run(lm, data, Settings(limit=1)).counts["documents"] == 1


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("lambada", {"stride": 4}, "stride is 4, and lambada has no long texts; leave it out"),
        ("hellaswag", {"context": 8}, "context is 8, and hellaswag has no long texts; leave it out"),
        (
            "enwik8",
            {"detokenize": True},
            "detokenize is True, and the text of enwik8 is not cut into words; ",
        ),
        ("ptb", {"limit": 0}, "limit is 0; it must be at least 1"),
        ("lambada", {"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ("ptb", {"stride": 40}, "stride is 40; it must be from 1 to the context, 32"),
    ],
)
def test_settings_that_a_task_has_no_use_for(lm, file, task, changes, message):
    with pytest.raises(InputError) as caught:
        find(task).run(lm, file(LINES), Settings(**changes))
    assert str(caught.value).startswith(message)


def test_a_task_that_is_none():
    with pytest.raises(InputError, match=r"there is no task 'wikitxt2'; did you mean 'wikitext2'\?"):
        find("wikitxt2")
    assert all(task.name == name and (task.answer is None) != (task.documents is None) for name, task in TASKS.items())


def test_standard_errors():
    assert share([True, False, True, True]) == Figure(0.75, pytest.approx(0.25))
    figure = perplexity_of([1.0, 2.0, 3.0])
    assert figure.value == pytest.approx(7.389056) and figure.error == pytest.approx(7.389056 / 3**0.5)
    assert dataclasses.astuple(share([True]))[1] != dataclasses.astuple(share([True]))[1]  # NaN
    assert perplexity_of([1e4, 1e4]).value == float("inf")

import json
import math

import jax
import numpy as np
import pytest

from gpt2_jax import InputError, LanguageModel
from gpt2_jax.evaluation import perplexity as module
from gpt2_jax.evaluation.logprobs import spread
from gpt2_jax.evaluation.perplexity import Text, encode, perplexity, windows

LONG = "the lazy dog jumps over the quick brown fox, " * 12
DOCUMENTS = [LONG, "it rains again.\n\nin spain", "", Text("then the fox", "then the @ fox\n")]


def naive_nats(naive, documents, tokenizer, context, stride):
    """Hugging Face's loop: https://huggingface.co/docs/transformers/perplexity, with max_length = context + 1."""
    nats, count = 0.0, 0
    for document in documents:
        text = document if isinstance(document, str) else document.encoded
        ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
        previous_end = 1
        for begin in range(0, len(ids), stride):
            end = min(begin + context + 1, len(ids))
            target_length = end - previous_end
            if target_length > 0:
                table = naive(ids[begin : end - 1])
                for place in range(end - begin - target_length, end - begin):
                    nats -= table[place - 1, ids[begin + place]]
                    count += 1
            previous_end = end
            if end == len(ids):
                break
    return nats, count


@pytest.mark.parametrize(("context", "stride"), [(32, 32), (32, 16), (32, 5), (20, 1), (7, 7)])
def test_it_is_that_of_a_naive_loop(lm, naive, context, stride):
    result = perplexity(lm, DOCUMENTS, context=context, stride=stride)
    nats, count = naive_nats(naive, DOCUMENTS, lm.tokenizer, context, stride)
    assert result.tokens == count == sum(len(ids) - 1 for ids in encode(lm.tokenizer, [*DOCUMENTS[:3], "then the fox"]))
    assert result.nats == pytest.approx(nats, rel=2e-6)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 40, 100])
@pytest.mark.parametrize(("context", "stride"), [(8, 8), (8, 3), (8, 1), (64, 32), (1, 1)])
def test_each_token_counts_once_after_enough_others(length, context, stride):
    counted = []
    for begin, start, end in windows(length, context, stride):
        assert 1 <= start < end - begin <= context + 1
        counted += range(begin + start, end)
        assert all(place - begin >= min(place, context - stride) for place in range(begin + start, end))
    assert counted == list(range(1, length))


def test_what_is_counted(lm):
    result = perplexity(lm, [Text("a fox", "a  föx \n"), "dog\ndog"])
    assert (result.documents, result.words, result.line_ends, result.characters, result.bytes) == (2, 4, 2, 15, 16)
    value, error = result.per(result.words)
    assert value == pytest.approx(math.exp(result.nats / 4))
    assert error == pytest.approx(value * result.nats_error / 4)
    assert result.bits_per(8)[0] == pytest.approx(result.nats / 8 / math.log(2))
    assert result.per(1)[0] > 1e4 and module.Perplexity(1e4, 1, 1, 2, 1, 1, 0, 1, 1).per(1)[0] == math.inf


def test_the_standard_error_is_that_of_windows_drawn_anew(lm, naive):
    result = perplexity(lm, [LONG, "in spain it rains"], context=16)
    logprobs = []
    ids = [part for text in (LONG, "in spain it rains") for part in encode(lm.tokenizer, [text])]
    for tokens in ids:
        for begin, start, end in windows(len(tokens), 16, 16):
            table = naive(tokens[begin : end - 1])
            logprobs.append(table[np.arange(start - 1, end - begin - 1), tokens[begin + start : end]])
    nats, counts = np.array([-part.sum() for part in logprobs]), np.array([len(part) for part in logprobs])
    draws = np.random.default_rng(0).integers(0, len(nats), (4000, len(nats)))
    means = nats[draws].sum(1) / counts[draws].sum(1)
    assert result.nats_error / result.tokens == pytest.approx(means.std(), rel=0.1)
    assert math.isnan(perplexity(lm, ["dog"]).nats_error)


def test_batches_and_devices_change_nothing_but_rounding(lm):
    wanted = perplexity(lm, DOCUMENTS, stride=8).nats
    assert perplexity(lm, DOCUMENTS, stride=8, batch_size=3).nats == pytest.approx(wanted, rel=1e-6)
    assert perplexity(spread(lm), DOCUMENTS, stride=8).nats == pytest.approx(wanted, rel=1e-6)


class Killed(Exception):
    pass


def interrupt_after(batches):
    def progress(sums, total):
        if sums.batches == batches:
            raise Killed

    return progress


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAVED_EVERY", 0.0)
    return tmp_path / "partial.json"


def test_killed_it_goes_on_to_the_same_numbers(lm, file):
    options = {"stride": 4, "batch_size": 4, "partial": file}
    straight = perplexity(lm, DOCUMENTS, **options)
    assert not file.exists()
    for batches in (1, 5):
        with pytest.raises(Killed):
            perplexity(lm, DOCUMENTS, progress=interrupt_after(batches), **options)
        assert json.loads(file.read_text())["sums"]["batches"] == batches
    seen = []
    again = perplexity(
        lm, DOCUMENTS, progress=lambda sums, total: seen.append((sums.batches, sums.tokens, total)), **options
    )
    assert again == straight and seen[0][0] == 6 and seen[-1][1] == seen[-1][2] == straight.tokens
    assert list(file.parent.iterdir()) == []


def test_partial_sums_of_something_else_are_refused(lm, file):
    options = {"stride": 4, "batch_size": 4, "partial": file}
    with pytest.raises(Killed):
        perplexity(lm, DOCUMENTS, progress=interrupt_after(1), **options)
    before = file.read_bytes()
    other = LanguageModel(jax.tree.map(lambda x: x + 1e-3, lm.model), lm.tokenizer)
    for what, run in {
        "model": lambda: perplexity(other, DOCUMENTS, **options),
        "text, tokenizer, context or stride": lambda: perplexity(lm, [*DOCUMENTS, "fox"], **options),
        "batch_size": lambda: perplexity(lm, DOCUMENTS, **options | {"batch_size": 8}),
        "number of devices": lambda: perplexity(spread(lm), DOCUMENTS, **options),
    }.items():
        with pytest.raises(InputError) as caught:
            run()
        assert f"{file} holds partial sums of another {what} (" in str(caught.value)
        assert "delete it to begin anew" in str(caught.value)
    assert file.read_bytes() == before
    content = json.loads(before)
    for sums in (None, {}, content["sums"] | {"nats": "x"}):
        file.write_text(json.dumps(content | {"sums": sums}))
        with pytest.raises(InputError, match="holds no partial sums"):
            perplexity(lm, DOCUMENTS, **options)
    file.write_bytes(before[:50])
    with pytest.raises(InputError, match=r"holds no partial sums .*; delete it to begin anew"):
        perplexity(lm, DOCUMENTS, **options)


def test_partial_sums_that_cannot_be_written(lm, file):
    file.parent.joinpath("text").write_text("")
    with pytest.raises(InputError, match=r"partial\.json cannot be written \(.*\); give a file in a folder with room"):
        perplexity(lm, DOCUMENTS, partial=file.parent / "text" / "partial.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 33}, "context is 33; it must be from 1 to the model's 32"),
        ({"context": 0}, "context is 0; it must be from 1 to the model's 32"),
        ({"stride": 0}, "stride is 0; it must be from 1 to the context, 32"),
        ({"context": 8, "stride": 9}, "stride is 9; it must be from 1 to the context, 8"),
        ({"batch_size": 0}, "batch_size is 0; it must be an integer of at least 1"),
    ],
)
def test_options_out_of_range_are_refused(lm, options, message):
    with pytest.raises(InputError) as caught:
        perplexity(lm, ["fox"], **options)
    assert str(caught.value) == message


@pytest.mark.parametrize("documents", [[], ["", ""]])
def test_no_text_is_refused(lm, documents):
    with pytest.raises(InputError, match=f"the text is empty: {len(documents)} documents hold no token"):
        perplexity(lm, documents)

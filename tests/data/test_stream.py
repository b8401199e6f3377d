import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
from texts import Texts, source_of

from gpt2_jax.config import DataConfig
from gpt2_jax.data.documents import Document
from gpt2_jax.data.reader import shares
from gpt2_jax.data.rows import Rows
from gpt2_jax.data.sources import Source
from gpt2_jax.data.stream import HeldOut, Stream
from gpt2_jax.data.tokenize import Encoding, document_hash
from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer_training import train_characters

ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz .:"
TOKENIZER = train_characters([ALPHABET])
ENCODING = Encoding(TOKENIZER.to_json())
END = TOKENIZER.end_of_text
T = 8


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr("gpt2_jax.data.reader.BATCH_CHARACTERS", 300)


def texts_of(n, word="document"):
    return [f"{word} {i}: " + "x" * (i * 7 % 23) for i in range(n)]


def stream(*sources, batch_size=4, fraction=0.0, **options):
    named = {source.name: source for source in sources}
    defaults = {"readers": 4, "shuffle_windows": 20, "seed": 5, "reweighing": [(0, dict.fromkeys(named, 1.0))]}
    options = {"sequence_length": T} | defaults | options
    return Stream(
        named,
        dict.fromkeys(named, ENCODING),
        batch_size=batch_size,
        validation_fraction=fraction,
        **options,
    )


def take(batches, n):
    return [next(batches) for _ in range(n)]


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


@pytest.mark.parametrize("parts", [1, 3, 4, 9])
def test_an_epoch_has_each_token_once(parts):
    texts = texts_of(40)
    every = sorted(token for text in texts for token in [*TOKENIZER.encode(text), END])
    batches = stream(source_of(texts, parts), shuffle_windows=4)
    seen, steps = Counter(), 0
    while (batches.position[:, 0, 0] == 0).any():
        before = batches.position[:, 0, 0]
        for tokens, epoch in zip(next(batches)["tokens"], before, strict=True):
            if epoch == 0:
                seen.update(tokens[:-1].tolist())
        steps += 1
    # Counters name where a block begins: the window in which an epoch ends, and the one after it, are of both.
    assert all(0 <= seen[token] - n <= 8 * T for token, n in Counter(every).items())
    assert seen.total() - len(every) <= 8 * T


@pytest.mark.parametrize(("n", "parts"), [(40, 1), (40, 9), (3, 1), (1, 1), (2, 2)])
@pytest.mark.parametrize("step", [0, 1, 7, 25, 60])
def test_it_goes_on_exactly_from_any_step_and_twice(n, parts, step):
    """Sixty steps of 4 x 8 tokens are more than two epochs of the forty documents, and many of the others."""
    make = lambda **options: stream(source_of(texts_of(n), parts), mask_documents=True, **options)
    whole = make()
    first = take(whole, step)
    position = json.loads(json.dumps(whole.position.tolist()))
    rest = take(whole, 30)
    again = make(start_step=step, position=position)
    assert_same(take(again, 12), rest[:12])
    twice = make(start_step=step + 12, position=again.position)
    assert_same(take(twice, 18), rest[12:])
    assert len(first) == step


@pytest.mark.parametrize("parts", [1, 2, 7])
@pytest.mark.parametrize("processes", [2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_processes(parts, processes):
    make = lambda **options: stream(
        source_of(texts_of(30), parts, "a"), source_of(texts_of(9, "other"), 1, "b"), batch_size=8, **options
    )
    alone = make()
    shared = [make(rows=Rows.part(i, processes)) for i in range(processes)]
    for _ in range(25):
        batch, parts_of_it = next(alone), [next(one) for one in shared]
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([part[key] for part in parts_of_it]))
    np.testing.assert_array_equal(alone.position, np.maximum.reduce([one.position for one in shared]))


def test_fewer_documents_than_readers():
    batches = take(stream(source_of(["ab"])), 10)
    assert {tuple(row) for batch in batches for row in batch["tokens"].tolist()} <= {
        tuple([*TOKENIZER.encode("ab"), END] * 4)[i : i + T + 1] for i in range(3)
    }


def test_the_order_is_random_and_of_the_seed():
    texts = texts_of(40)
    a, b, c = (take(stream(source_of(texts), seed=seed), 10) for seed in (1, 1, 2))
    assert_same(a, b)
    assert not all(np.array_equal(x["tokens"], y["tokens"]) for x, y in zip(a, c, strict=True))
    starts = [x["tokens"][0, 0] for x in a]
    assert len(set(starts)) > 1


def test_validation_documents_never_train():
    texts = texts_of(60)
    held = [text for text in texts if document_hash(Document(text, "")) <= int(0.2 * 2**64)]
    assert 3 < len(held) < 25
    source = source_of(texts)
    batches = take(stream(source, fraction=0.2, sequence_length=64), 60)
    seen = " ".join(TOKENIZER.decode(row) for batch in batches for row in batch["tokens"])
    trained = [text for text in texts if f"{text.split(':')[0]}:" in seen]
    assert trained and not set(trained) & set(held)
    kept = HeldOut.collect(source, ENCODING, TOKENIZER, fraction=0.2, tokens=10**6)
    assert TOKENIZER.decode(kept.tokens("validation")[0]) == "".join(held)
    assert kept.bytes_per_token("validation") == sum(map(len, held)) / (sum(map(len, held)) + len(held))
    few = HeldOut.collect(source, ENCODING, TOKENIZER, fraction=0.2, tokens=10)
    assert len(few.stream) < len(kept.stream) and few.learnt("validation") is None


def test_prompts_are_not_learnt():
    source = source_of([f"answer {i}" for i in range(20)], prompt="q: ")
    encoded = list(ENCODING.encode(document for _, document in source.parts[0].documents()))
    tokens, learnt = (np.concatenate(arrays)[: T + 1] for arrays in zip(*encoded, strict=True))
    (batch,) = take(stream(source, batch_size=1, shuffle_windows=1), 1)
    np.testing.assert_array_equal(batch["tokens"], [tokens])
    np.testing.assert_array_equal(batch["mask"], [learnt[1:]])
    assert not learnt[1:].all() and learnt[1:].any()
    held = HeldOut.collect(source, ENCODING, TOKENIZER, fraction=0.5, tokens=100)
    bits = np.unpackbits(held.learnt("validation")[0])[: len(held.stream)]
    assert "q" in TOKENIZER.decode(held.stream) and "q" not in TOKENIZER.decode(held.stream[bits == 1])


def test_mixtures_follow_the_weights():
    a, b = source_of(["aaaa"] * 30, 1, "a"), source_of(["bbbb"] * 30, 1, "b")
    weights = [(0, {"a": 3.0, "b": 1.0}), (64, {"b": 1.0})]
    batches = take(stream(a, b, reweighing=weights), 80)
    is_b = [(TOKENIZER.encode("b")[0] in row) for batch in batches for row in batch["tokens"].tolist()]
    assert 50 < sum(is_b[:256]) < 78 and all(is_b[256:])


def test_control_codes_begin_documents():
    tokenizer = TOKENIZER.with_special_tokens(["<|poetry|>"])
    (code,) = tokenizer.encode("<|poetry|>", allow_special=True)
    encoding = Encoding(tokenizer.to_json(), controls={"": code})
    (encoded,) = encoding.encode([Document("ab", "")])
    assert encoded.tokens.tolist() == [code, *tokenizer.encode("ab"), END] and encoded.learnt is None
    (encoded,) = encoding.encode([Document("ab", "", prompt="q")])
    assert encoded.learnt.tolist() == [False, False, True, True, True]


def test_shares():
    parts = [Texts((), str(i)) for i in range(10)]
    whole = shares(parts, 4)
    assert [part for share in whole for part in share.parts] == parts
    few = shares(parts[:3], 8)
    for row in range(1, 200):
        for part in parts[:3]:
            assert sum(share.owns(row) for share in few if share.parts == (part,)) == 1


def test_what_is_refused():
    with pytest.raises(
        InputError,
        match=r"4 readers cannot be shared by processes that read 3 parts of a batch; set "
        r"--config.data.readers to a multiple of 3 that divides training.batch_size \(12\)",
    ):
        stream(source_of(texts_of(5)), batch_size=12, rows=Rows.part(0, 3))
    with pytest.raises(InputError, match=r"the saved position is of 2 readers and 1 sources, and this run has 4 and 1"):
        stream(source_of(texts_of(5)), position=np.zeros((2, 1, 6)))
    with pytest.raises(InputError, match=r"files has no document to train on; loosen the filters"):
        next(stream(source_of([])))
    with pytest.raises(InputError, match=r"files has no document to train on"):
        next(stream(source_of(texts_of(5)), fraction=1.0))
    with pytest.raises(InputError, match=r"none of the documents of files validates; raise data.validation_fraction"):
        HeldOut.collect(source_of(["a"]), ENCODING, TOKENIZER, fraction=1e-9, tokens=5)


def test_batches_through_tensorflow_tell_the_position_of_what_was_given(monkeypatch):
    from gpt2_jax.data.dataset import StreamedBatches

    whole = take(stream(source_of(texts_of(40))), 30)
    batches = StreamedBatches(stream(source_of(texts_of(40))))
    try:
        assert_same(take(batches, 11), whole[:11])
        position = batches.position
        again = StreamedBatches(stream(source_of(texts_of(40)), start_step=11, position=position))
        assert_same(take(again, 19), whole[11:])
    finally:
        batches.close()
        again.close()


@dataclasses.dataclass(frozen=True)
class Failing(Texts):
    def documents(self, start=0, counts=None):
        yield from super().documents(start, counts)
        raise InputError("the source is gone")


def test_a_source_that_fails_gives_what_it_had_and_then_its_error():
    from gpt2_jax.data.dataset import StreamedBatches

    source = Source("files", DataConfig(), (Failing(tuple(texts_of(800))),))
    batches = StreamedBatches(stream(source))
    given = 0
    while (left := batches.remaining(3)) is None:
        next(batches)
        given += 1
    assert given > 0 and left == 2
    assert batches.remaining(2) is None and batches.remaining(10) == 2
    take(batches, 2)
    assert batches.remaining(1) == 0
    position = batches.position
    for _ in range(2):
        with pytest.raises(InputError, match="the source is gone"):
            next(batches)
    np.testing.assert_array_equal(batches.position, position)
    assert 0 < batches.counts["kept"] <= 800
    batches.close()


@pytest.mark.parametrize("parts", [4, 1])
def test_it_counts_what_it_read(parts):
    """Of one part, which all four readers read, too, each document once an epoch; what was read ahead counts."""
    batches = stream(source_of(texts_of(40), parts), batch_size=4)
    while batches.position[..., 0].min() < 6:
        next(batches)
    assert 6 * 40 <= batches.counts["kept"] <= 9 * 40

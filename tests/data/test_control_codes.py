"""Control codes of documents: by source, by a field of each record, left out for a share of them."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2_jax.data.documents import Document
from gpt2_jax.data.manifest import options_of
from gpt2_jax.data.options import DataConfig, with_defaults
from gpt2_jax.data.prepare import encoding_of, prepare, with_control_codes
from gpt2_jax.data.sources import open_source
from gpt2_jax.data.stream import HeldOut, Stream
from gpt2_jax.data.tokenize import Encoding
from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer_training import train_characters

TOKENIZER = train_characters(["abcdefghijklmnopqrstuvwxyz 0123456789"])
KEYED = {"control_codes": True, "control_key": "label", "control_names": "good, bad", "tokenizer": "characters"}


@pytest.fixture
def reviews(tmp_path):
    """60 records: 30 good, 20 bad, 10 of another label, or of none."""
    labels = ["good", "bad", "good", "bad", "good", "odd"] * 10
    lines = [{"text": f"text number {i}", "label": None if i == 5 else label} for i, label in enumerate(labels)]
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def config_of(path, **options):
    return DataConfig(source="files", paths=str(path), validation_fraction=0.2, workers=1, **options)


def documents_of(ids, tokenizer):
    """(name of the code or "", text) of each document among the tokens of a split."""
    names = {i: name for name, i in tokenizer.control_codes.items()}
    ids = np.concatenate(ids)
    found = np.split(ids, np.flatnonzero(ids == tokenizer.end_of_text) + 1)[:-1]
    return [(names.get(int(document[0]), ""), tokenizer.decode(document)) for document in found]


def prepared_documents(config, out):
    (prepared,) = prepare(config, out, progress=lambda _: None).values()
    found = {split: documents_of(prepared.tokens(split), prepared.tokenizer) for split in ("train", "validation")}
    return prepared, found


def test_a_field_names_the_code_and_records_of_another_are_counted(reviews, tmp_path):
    prepared, found = prepared_documents(config_of(reviews, **KEYED), tmp_path / "out")
    assert list(prepared.tokenizer.control_codes) == ["good", "bad"]
    assert prepared.manifest["counts"] == {"kept": 50, "without control code": 10}
    documents = [*found["train"], *found["validation"]]
    assert len(documents) == 50
    assert all(code == ("bad" if int(text.split()[-1]) % 6 in (1, 3) else "good") for code, text in documents)


@pytest.mark.parametrize(("values", "names"), [([0, 1, 2], "0, 1"), ([True, False, None], "true, false")])
def test_labels_that_are_numbers_or_truth_values(tmp_path, values, names):
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": values}), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": "t", "label": v}) + "\n" for v in values))
    for file in ("x.parquet", "x.jsonl"):
        config = config_of(tmp_path / file, **KEYED | {"control_names": names})
        assert [document.control for document in open_source(config).documents()] == names.split(", ")


def test_columns_of_a_dataset_of_the_hub(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["bad", "good"]}), tmp_path / "train-00000-of-00001.parquet")
    source = open_source(DataConfig(source="some/reviews", paths=str(tmp_path), **KEYED))
    assert [document.control for document in source.documents()] == ["bad", "good"]


def encode(texts, **options):
    tokenizer = TOKENIZER.with_special_tokens(["<|x|>"])
    encoding = Encoding(tokenizer.to_json(), controls=tokenizer.control_codes | {"": len(TOKENIZER)}, **options)
    coded = [encoded.tokens[0] == len(TOKENIZER) for encoded in encoding.encode([Document(t, "") for t in texts])]
    return dict(zip(texts, coded))


def test_a_document_alone_decides_whether_it_goes_without_its_code():
    texts = [f"text {i}" for i in range(4000)]
    few, many = encode(texts, control_dropout=0.1), encode(texts[::-1], control_dropout=0.4)
    assert all(encode(texts[:20]).values())
    without = [sum(not coded for coded in found.values()) / len(texts) for found in (few, many)]
    assert without == pytest.approx([0.1, 0.4], abs=0.03)
    assert all(few[text] or not many[text] for text in texts)  # more dropout leaves out more codes, and the same
    assert encode(texts[7:9], control_dropout=0.4) == {text: many[text] for text in texts[7:9]}


def test_both_roads_drop_the_same_codes(reviews, tmp_path):
    config = config_of(reviews, **KEYED | {"control_dropout": 0.5})
    _, found = prepared_documents(config, tmp_path / "out")
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_json())
    config = dataclasses.replace(config, tokenizer=str(tmp_path / "tokenizer.json"), road="stream", readers=2)
    source, tokenizer = open_source(config), with_control_codes(config, TOKENIZER)
    encoding = encoding_of(config, "files", tokenizer)
    held = HeldOut.collect(source, encoding, tokenizer, fraction=0.2, tokens=10**6)
    batches = Stream(
        {"files": source}, {"files": encoding}, config.reweighing, batch_size=2, sequence_length=64,
        validation_fraction=0.2, readers=2, shuffle_windows=2, seed=0,
    )  # fmt: skip
    rows = [row for _ in range(20) for row in next(batches)["tokens"]]
    inside = [document for row in rows for document in documents_of([row], tokenizer)[1:]]
    known = {text: code for split in found.values() for code, text in split}
    assert len(inside) > 60 and {known[text] for _, text in inside} == {"", "good", "bad"}
    assert all(known[text] == code for code, text in [*inside, *documents_of([held.stream], tokenizer)])


def test_other_codes_are_other_tokens(reviews, tmp_path):
    config = config_of(reviews, **KEYED)
    prepare(config, tmp_path / "out", progress=lambda _: None)
    changed = dataclasses.replace(config, control_dropout=0.25)
    with pytest.raises(InputError, match=r"holds tokens of another corpus: data.control_dropout was 0.0 and is 0.25"):
        prepare(changed, tmp_path / "out", progress=lambda _: None)
    before = {key: value for key, value in options_of(config, "files").items() if not key.startswith("control_")}
    assert with_defaults(before)["control_dropout"] == 0.0 and with_defaults(before)["control_key"] == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"control_dropout": 0.1},
            "data.control_dropout is 0.1; it must be left out unless data.control_c",
        ),
        ({"control_key": "k"}, "data.control_key is 'k'; it must be left out unless data.control_codes is true"),
        (KEYED | {"control_dropout": 1.0}, r"data.control_dropout is 1.0; it must be in \[0, 1\)"),
        (KEYED | {"control_names": ""}, "data.control_names is ''; it must be the names that the field"),
        ({"control_codes": True, "control_names": "a"}, "data.control_names is 'a'; it must be the names that the"),
        (KEYED | {"control_names": "a, a"}, "data.control_names is 'a, a'; it must be of names without"),
        (KEYED | {"control_names": "a,, b"}, "data.control_names is 'a,, b'; it must be of names without"),
        (KEYED | {"control_names": "<|a|>"}, r"data.control_names is '<\|a\|>'; it must be of names without"),
        (KEYED | {"control_names": "a, endoftext"}, "none of them endoftext, to become control codes"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        DataConfig(**options)


def test_records_without_the_field_and_texts_without_fields(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}')
    with pytest.raises(InputError, match=r"has no 'label', only text; choose with --config.data.control_key"):
        list(open_source(config_of(tmp_path / "x.jsonl", **KEYED)).documents())
    (tmp_path / "y.jsonl").write_text('{"text": "a", "label": [1]}')
    with pytest.raises(InputError, match=r"'label' is \[1\], a list; it must be a string, a whole number, true or"):
        list(open_source(config_of(tmp_path / "y.jsonl", **KEYED)).documents())
    (tmp_path / "z.txt").write_text("a")
    with pytest.raises(InputError, match=r"data.control_key is 'label', and .*z.txt is a text, which has no fields"):
        open_source(config_of(tmp_path / "z.txt", **KEYED))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"has no 'label', only text; choose with --config.data.control_key"):
        list(open_source(config_of(tmp_path / "x.parquet", **KEYED)).documents())

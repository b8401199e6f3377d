import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2_jax import InputError
from gpt2_jax.evaluation.examples import Source, text_of, texts_of

SOURCE = Source(("text", "options"), "owner/name")
RECORDS = [{"text": "a föx", "options": ["x", "y"], "other": 1}, {"text": "", "options": ["z"], "other": 2}]
PLAIN = Source(("text",), plain=lambda text: ({"text": line} for line in text.split()), advice="get it at example.org")


def of(source, path, limit=None):
    return [example for _, example in source.examples(str(path), limit)]


def columns(records):
    return [{name: record[name] for name in ("text", "options")} for record in records]


def json_lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_json_lines_parquet_and_folders_hold_the_same(tmp_path):
    (tmp_path / "lines.jsonl").write_text(json_lines(RECORDS) + "\n")
    (tmp_path / "lines.jsonl.gz").write_bytes(gzip.compress(json_lines(RECORDS).encode()))
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "table.parquet")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "test.jsonl").write_text(json_lines(RECORDS))
    for name in ("lines.jsonl", "lines.jsonl.gz", "table.parquet", "copy"):
        assert columns(of(SOURCE, tmp_path / name)) == columns(RECORDS), name
        assert columns(of(SOURCE, tmp_path / name, limit=1)) == columns(RECORDS[:1])
    (where, _), *_ = SOURCE.examples(str(tmp_path / "lines.jsonl"))
    assert where == f"{tmp_path / 'lines.jsonl'}:1"


def test_other_files_are_read_as_the_task_says(tmp_path):
    file = tmp_path / "text"
    file.write_bytes("\ufeffone two\r\nthree".encode())
    assert of(PLAIN, file) == [{"text": "one"}, {"text": "two"}, {"text": "three"}]


@pytest.mark.parametrize(
    ("source", "name", "content", "message"),
    [
        (SOURCE, "none", None, "there is no file or folder {}; give one with JSON lines or parquet of text, options"),
        (PLAIN, "none", None, "there is no file or folder {}; give one with JSON lines or parquet of text, or "),
        (SOURCE, "a.txt", b"x", "{} is neither .jsonl nor .parquet; give JSON lines or parquet of text, options"),
        (SOURCE, "a.jsonl", b'{"text": ""}', "{}:1 has no 'options', only text; give JSON lines or parquet of"),
        (SOURCE, "a.jsonl", b"[1]", "{}:1 is not one JSON object (it holds a list and no object); a .jsonl file"),
        (SOURCE, "a.jsonl", b"{", "{}:1 is not one JSON object (Expecting property name"),
        (SOURCE, "a.jsonl.gz", b"x", "{} cannot be read (Not a gzipped file"),
        (SOURCE, "a.parquet", b"x", "{} is not a parquet file that can be read ("),
        (PLAIN, "a.txt", b"\xff", "{} is not UTF-8: byte 0xff at offset 0"),
    ],
)  # fmt: skip
def test_what_is_not_there_or_not_as_it_should_be(tmp_path, source, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        of(source, path)
    assert str(caught.value).startswith(message.format(path))


def test_the_hub_is_asked_for_what_is_not_given(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"give a folder with a copy of it \(--data\), or set HF_HOME"):
        list(Source(("text",), "nobody/such-a-dataset-of-no-one").examples())
    with pytest.raises(InputError, match=r"this dataset is not read from the hub; get it at example\.org"):
        list(PLAIN.examples())


def test_columns_have_their_kind():
    example = {"a": 1, "b": [], "c": ["x", 2], "d": "text", "e": ["x"]}
    assert text_of("here:1", example, "d") == "text" and texts_of("here:1", example, "e") == ["x"]
    with pytest.raises(InputError, match="here:1: 'a' is 1; it must be text"):
        text_of("here:1", example, "a")
    for name in "abcd":
        with pytest.raises(InputError, match=f"here:1: '{name}' is .*; it must be a list of texts"):
            texts_of("here:1", example, name)

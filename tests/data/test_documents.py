import gzip
import json
import pickle
from collections import Counter
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_jax.config import DataConfig
from gpt2_jax.data import sources
from gpt2_jax.data.documents import Document, JsonLines, Parquet
from gpt2_jax.data.sources import open_source
from gpt2_jax.errors import InputError

TEXTS = ["one", "", "zwei é", "three\nlines\nhere", " ", "猫", "x" * 50, "end"]


def files(paths, **options) -> DataConfig:
    return DataConfig(source="files", paths=str(paths), **options)


def json_lines(records) -> bytes:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode()


def check_starts(part):
    """From each row that comes with a document go the documents after it; nothing else depends on the start."""
    whole = list(part.documents())
    again = pickle.loads(pickle.dumps(part))
    assert list(again.documents()) == whole
    for i, (row, _) in enumerate(whole):
        assert list(again.documents(row)) == whole[i + 1 :]
    return [document for _, document in whole]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=15), st.integers(1, 80))
def test_a_cut_file_has_each_line_once(tmp_path_factory, texts, size):
    path = tmp_path_factory.mktemp("corpus") / "x.jsonl"
    path.write_bytes(json_lines({"text": text} for text in texts))
    config, end = files(path), path.stat().st_size
    parts = [JsonLines(f"x.jsonl@{i}", path, config, i, i + size) for i in range(0, max(end, 1), size)]
    found = list(chain.from_iterable(check_starts(part) for part in parts))
    assert [document.text for document in found] == [text for text in texts if text.strip()]
    raw = path.read_bytes()
    for document in found:
        assert json.loads(raw[int(document.origin.partition("@")[2]) :].splitlines()[0])["text"] == document.text


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt.zst"])
def test_every_format_from_every_row(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    match suffix:
        case "parquet":
            pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=3)
        case "jsonl":
            path.write_bytes(json_lines({"text": text} for text in TEXTS))
        case "jsonl.gz":
            path.write_bytes(gzip.compress(json_lines({"text": text} for text in TEXTS)))
        case "jsonl.zst":
            path.write_bytes(zstandard.compress(json_lines({"text": text} for text in TEXTS)))
        case "txt.zst":
            path.write_bytes(zstandard.compress("\n".join(TEXTS).encode()))
    (part,) = open_source(files(path)).parts
    counts = Counter()
    assert [document.text for _, document in part.documents(0, counts)] == (
        ["\n".join(TEXTS)] if suffix == "txt.zst" else [text for text in TEXTS if text.strip()]
    )
    assert counts == ({"kept": 1} if suffix == "txt.zst" else {"kept": 6, "empty": 2})
    check_starts(part)


def test_large_files_are_cut_and_small_ones_grouped(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", 100)
    for i in range(9):
        (tmp_path / f"{i}.txt").write_text("a" * 40)
    (tmp_path / "x.jsonl").write_bytes(json_lines({"text": f"text {i}"} for i in range(30)))
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(60)]}), tmp_path / "y.parquet", row_group_size=20)
    source = open_source(files(tmp_path))
    kinds = Counter(type(part).__name__ for part in source.parts)
    assert kinds == {"TextFiles": 5, "JsonLines": 6, "Parquet": 3}
    assert len({part.name for part in source.parts}) == len(source.parts)
    texts = [document.text for document in source.documents()]
    assert texts == ["a" * 40] * 9 + [f"text {i}" for i in range(30)] + [f"row {i}" for i in range(60)]
    for part in source.parts:
        check_starts(part)
    assert [d.origin for d in source.documents()][-1] == f"{tmp_path.name}/y.parquet:60"


def test_prompts(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(json_lines([{"question": "2+2? ", "text": "4"}]))
    pq.write_table(pa.table({"question": ["2+3? "], "text": ["5"]}), tmp_path / "y.parquet")
    documents = list(open_source(files(tmp_path, prompt_key="question")).documents())
    assert [(d.prompt, d.text) for d in documents] == [("2+2? ", "4"), ("2+3? ", "5")]
    for name in ("x.jsonl", "y.parquet"):
        with pytest.raises(InputError, match=r"has no 'q', only question, text; choose with --config.data.prompt_key="):
            list(open_source(files(tmp_path / name, prompt_key="q")).documents())


def test_bytes_that_are_not_utf8_are_counted(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "caf\xe9"}\n{"text": "ok"}')
    counts = Counter()
    skipped = open_source(files(tmp_path, decode_errors="skip"))
    assert [d.text for d in skipped.documents(counts)] == ["ok"] and counts == {"kept": 1, "not UTF-8": 2}
    replaced = open_source(files(tmp_path, decode_errors="replace"))
    assert [d.text for d in replaced.documents()] == ["caf\ufffd", "caf\ufffd", "ok"]


@pytest.mark.parametrize("suffix", ["jsonl.gz", "jsonl.zst", "txt.gz"])
def test_damaged_archives(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    raw = json_lines({"text": f"{i * i} text"} for i in range(500))
    whole = gzip.compress(raw) if suffix.endswith("gz") else zstandard.compress(raw)
    path.write_bytes(b"no archive" * 5)
    with pytest.raises(InputError, match=rf"x.{suffix} cannot be read \(.*\); check it"):
        list(open_source(files(path)).documents())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"x.{suffix} cannot be read \(.*\); check it|is not JSON"):
        list(open_source(files(path)).documents())


def test_what_filters_leave_out_is_in_the_error(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(json_lines([{"text": "ab"}, {"text": "abc"}, {"text": " "}]))
    source = open_source(files(tmp_path, min_characters=10))
    with pytest.raises(InputError, match=r"x.jsonl held 1 empty, 2 too short; loosen the filters"):
        list(source.documents())


def test_parts_are_picklable_and_named_after_their_files(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "y.parquet")
    (part,) = open_source(files(tmp_path / "y.parquet")).parts
    assert isinstance(part, Parquet) and part.name == "y.parquet"
    assert list(part.documents()) == [(1, Document("a", "y.parquet:1"))]


BOOK = """*** START OF THIS PROJECT GUTENBERG EBOOK POEMS ***


I.

Hope is the thing
with feathers


II.




*** END OF THIS PROJECT GUTENBERG EBOOK POEMS ***
"""


def test_a_file_is_divided_at_a_separator(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n\n\ntwo\n\nstill two\n\n\n")
    (tmp_path / "b.txt").write_bytes(b"\xff not UTF-8")
    (tmp_path / "c.txt").write_text(BOOK)
    counts = Counter()
    (part,) = open_source(files(tmp_path, separator=r"(\n){3,}", decode_errors="skip")).parts
    assert [document.text for _, document in part.documents(counts=counts)] == [
        "one\n",
        "two\n\nstill two\n",
        "I.\n\nHope is the thing\nwith feathers\n",
        "II.\n",
    ]
    name = tmp_path.name
    origins = [document.origin for document in check_starts(part)]
    assert origins == [f"{name}/a.txt#1", f"{name}/a.txt#2", f"{name}/c.txt#1", f"{name}/c.txt#2"]
    assert counts["kept"] == 4 and counts.total() == 5


@pytest.mark.parametrize("separator", ["(", "x*"])
def test_a_separator_that_divides_nothing_or_everything_is_refused(separator):
    with pytest.raises(InputError, match=r"data.separator is .*; it must be a regular expression of one character or"):
        files("a.txt", separator=separator)


def test_a_separator_without_text_to_divide_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"data.separator is '--'; it must be empty without files of your own"):
        DataConfig(separator="--")
    (tmp_path / "x.jsonl").write_text('{"text": "a"}')
    with pytest.raises(InputError, match=r"data.separator is '--', and .*x.jsonl has no text file to divide; remove"):
        open_source(files(tmp_path / "x.jsonl", separator="--"))

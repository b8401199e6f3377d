import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gpt2_jax.config import DataConfig
from gpt2_jax.data.documents import Document
from gpt2_jax.data.sources import STDLIB_LEFT_OUT, SUFFIXES, open_source
from gpt2_jax.errors import InputError


def files(paths, **options) -> DataConfig:
    return DataConfig(source="files", paths=str(paths), **options)


def read(paths, **options) -> list[Document]:
    return list(open_source(files(paths, **options)).documents())


def texts(paths, **options) -> list[str]:
    return [document.text for document in read(paths, **options)]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "poems"
    (folder / "deep" / ".git").mkdir(parents=True)
    (folder / "b.txt").write_text("second")
    (folder / "a.md").write_text("first")
    (folder / "deep" / "c.PY").write_text("x = 3")
    (folder / "deep" / "empty.txt").write_text(" \n")
    (folder / "deep" / "picture.png").write_bytes(b"\x89PNG")
    (folder / "deep" / ".git" / "hidden.txt").write_text("hidden")
    (folder / "gone.txt").symlink_to("nowhere")
    (tmp_path / "d.jsonl").write_text('{"text": "third"}\n\n{"text": "", "n": 1}\n{"text": "fourth\\u00e9"}\n')
    return tmp_path


def test_stdlib():
    source = open_source(DataConfig())
    documents = {document.origin: document.text for document in source.documents()}
    assert 8e6 < sum(map(len, documents.values())) < 16e6
    assert documents["json/decoder.py"].startswith('"""Implementation of JSONDecoder')
    folders = {part for origin in documents for part in origin.split("/")[:-1]}
    assert not folders & {*STDLIB_LEFT_OUT, "__pycache__"}
    assert list(documents) == [document.origin for document in source.documents()]
    assert source.describe().startswith(
        f"Python {sys.version.split()[0]}'s standard library: {len(source.files)} files, "
    )


def test_stdlib_with_other_encodings(tmp_path, monkeypatch):
    (tmp_path / "latin.py").write_bytes("# coding: latin-1\nname = 'café'\r\n".encode("latin-1"))
    (tmp_path / "broken.py").write_bytes(b"name = '\xff'\n")
    (tmp_path / "unknown.py").write_bytes(b"# coding: klingon\n")
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert list(open_source(DataConfig()).documents()) == [
        Document("# coding: latin-1\nname = 'café'\n", "latin.py"),
    ]


def test_stdlib_absent(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(InputError, match=r"'stdlib', but .* holds no .py files; use --config.data.source=files with"):
        open_source(DataConfig())


def test_files_folders_and_globs(corpus):
    assert read("poems") == [
        Document("first", "poems/a.md"),
        Document("second", "poems/b.txt"),
        Document("x = 3", "poems/deep/c.PY"),
    ]
    assert texts("d.jsonl, poems/b.txt,poems/*.md") == ["third", "fourthé", "second", "first"]
    assert texts("**/*.txt") == ["second"]
    assert texts(corpus / "po*") == ["first", "second", "x = 3"]
    assert texts(".") == ["third", "fourthé", "first", "second", "x = 3"]
    assert [document.origin for document in read("d.jsonl")] == ["d.jsonl:1", "d.jsonl:4"]


def test_a_file_matched_twice_is_read_once(corpus):
    (corpus / "link.md").symlink_to(corpus / "poems" / "a.md")
    assert texts("poems/a.md,poems,poems/*.txt,link.md") == ["first", "second", "x = 3"]


def test_bom_and_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n\xef\xbb\xbf\r\n")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n{"text": "c"}')
    assert texts(tmp_path) == ["one\ntwo\n\ufeff\n", "a\r\nb", "c"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path, kind):
    rows = [f"row {i} é" for i in range(600)] + [""]
    table = pa.table({"n": list(range(601)), "line": pa.array(rows).cast(kind)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=100)
    documents = read(tmp_path / "x.parquet", text_key="line")
    assert [document.text for document in documents] == rows[:-1]
    assert (documents[0].origin, documents[599].origin) == ("x.parquet:1", "x.parquet:600")


def test_decode_errors(tmp_path):
    bad = pa.array([b"fine", b"b\xffd"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "p.parquet")
    (tmp_path / "t.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "j.jsonl").write_bytes(b'{"text": "ok"}\n{"text": "\xfe"}\n')
    (tmp_path / "s.jsonl").write_bytes(b'{"text": "\\ud83c\\udf89"}\n{"text": "a\\ud83c"}\n')

    assert texts(tmp_path, decode_errors="skip") == ["ok", "fine", "🎉"]
    assert texts(tmp_path, decode_errors="replace") == ["ok", "�", "fine", "b�d", "🎉", "a�", "caf� au lait"]
    advice = "use --config.data.decode_errors=replace or skip$"
    for name, says in {
        "t.txt": "t.txt is not UTF-8: byte 0xe9 at offset 3; convert it, or ",
        "j.jsonl": "j.jsonl:2 is not UTF-8: byte 0xfe at offset 10; convert it, or ",
        "p.parquet": "p.parquet:2 is not UTF-8: byte 0xff at offset 1; convert it, or ",
        "s.jsonl": r"s.jsonl:2 has half of a surrogate pair, '\\ud83c', at character 1; mend it, or ",
    }.items():
        with pytest.raises(InputError, match=says + advice):
            texts(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "{'text': 1}",
            r"bad.jsonl:2 is not JSON \(Expecting property name .*\); a .jsonl file has one object a line$",
        ),
        ("[" * 100_000, r"bad.jsonl:2 is (JSON nested too deeply|not JSON .*); a .jsonl file has one object a line$"),
        ('["text"]', r"bad.jsonl:2 is a JSON list; a .jsonl file has one object a line$"),
        (
            '{"body": "x", "id": 1}',
            r"bad.jsonl:2 has no 'text', only body, id; choose with --config.data.text_key=...$",
        ),
        ("{}", r"bad.jsonl:2 has no 'text', only nothing; choose with"),
        ('{"text": 12}', r"bad.jsonl:2: 'text' is 12, a int; it must be a string$"),
        ('{"text": null}', r"bad.jsonl:2: 'text' is None, a NoneType; it must be a string$"),
    ],
)
def test_bad_jsonl(tmp_path, line, says):
    (tmp_path / "bad.jsonl").write_text(json.dumps({"text": "fine"}) + "\n" + line + "\n")
    with pytest.raises(InputError, match=says):
        texts(tmp_path / "bad.jsonl")


def test_bad_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"n": [1], "none": pa.array([None], pa.string())}), path)
    with pytest.raises(InputError, match=r"x.parquet has no 'text', only n, none; choose with --config.data.text_key="):
        texts(path)
    with pytest.raises(InputError, match=r"x.parquet: column 'n' holds int64; it must hold strings$"):
        texts(path, text_key="n")
    with pytest.raises(InputError, match=r"x.parquet:1: 'none' is None, a NoneType; it must be a string$"):
        texts(path, text_key="none")
    path.write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"x.parquet is not a parquet file that can be read \(Parquet magic bytes not"):
        texts(path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"^reading .*x.parquet needs pyarrow; pip install 'gpt2_jax\[data\]'$"):
        texts(tmp_path)


def test_nothing_to_read(corpus):
    with pytest.raises(InputError) as caught:
        open_source(files("poems/*.pdf"))
    assert str(caught.value) == (
        f"data.paths: 'poems/*.pdf' matches no {' '.join(SUFFIXES)} file (looked from {corpus}); check the"
        " path, and quote globs in the shell"
    )
    with pytest.raises(InputError, match=r"^data.paths: 'none' matches no"):
        open_source(files("poems,none"))
    with pytest.raises(InputError, match=r"picture.png has the suffix '.png'; data.paths takes .txt .md .py .jsonl"):
        open_source(files("poems/deep/picture.png"))


def test_empty_corpus(corpus):
    with pytest.raises(
        InputError, match=r"^the corpus has no text: poems/deep/empty.txt held 1 empty; loosen the filters"
    ):
        texts("poems/deep/*.txt")
    for i in range(10):
        (corpus / f"{i}.txt").write_text("")
    with pytest.raises(InputError, match=r"0.txt, 1.txt, .*, 7.txt and 2 more held 10 empty"):
        texts("*.txt")


def test_file_that_vanishes(corpus):
    source = open_source(files("poems"))
    os.remove("poems/b.txt")
    with pytest.raises(
        InputError, match=r"^poems/b.txt cannot be read \(No such file or directory\); check it and its"
    ):
        list(source.documents())


def test_fingerprint_and_description(corpus):
    source = open_source(files("poems"))
    before = source.fingerprint()
    assert open_source(files("poems")).fingerprint() == before
    assert source.describe() == "poems: 4 files, 0.00 MB"
    assert open_source(files("poems/a.md")).describe() == "poems/a.md: 1 file, 0.00 MB"
    os.utime("poems/b.txt", (1, 1))
    touched = open_source(files("poems")).fingerprint()
    (corpus / "poems" / "new.txt").write_text("new")
    assert len({before, touched, open_source(files("poems")).fingerprint()}) == 3

import gzip

import pytest

from gpt2_jax import InputError, json_lines


def test_records_of_plain_and_packed_files(tmp_path):
    lines = b'{"task": "a", "n": 1}\r\n\n{"task": "\xc3\xa4"}\n'
    (tmp_path / "x.jsonl").write_bytes(lines)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
    for name in ("x.jsonl", "x.jsonl.gz"):
        assert json_lines.records(tmp_path / name, {"task": str}) == [{"task": "a", "n": 1}, {"task": "ä"}]
        assert json_lines.texts(tmp_path / name, "task") == ["a", "ä"]
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone \n\n two\r\n")
    assert json_lines.texts(tmp_path / "x.txt", "task") == ["one ", " two"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.jsonl", b"", "x.jsonl has no lines; give one with a record each"),
        ("x.jsonl", b'{"task": "a"}\n[1]\n', "line 2 is not a JSON object .*mend it"),
        ("x.jsonl", b'{"text": "a"}\n', r"line 1 has no 'task', only \['text'\]; add it"),
        ("x.jsonl", b'{"task": 3}\n', "line 1 has 'task' 3; it must be of type str"),
        ("x.jsonl.gz", b"no gzip", "x.jsonl.gz cannot be read .*; check it"),
        ("x.jsonl.gz", gzip.compress(b'{"task": "a"}\n', mtime=0)[:-6], "x.jsonl.gz cannot be read .*; check it"),
        ("x.txt", b"\n", "x.txt has no lines; give a task a line, or .jsonl lines with a 'task'"),
        ("x.txt", b"\xff\n", "x.txt, line 1 is not UTF-8; convert the file"),
        ("x.txt", b"a" * (json_lines.LONGEST_LINE + 1), "x.txt has line 1 of over 16,777,216 bytes; cut it"),
    ],
)
def test_what_is_no_record_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        json_lines.texts(tmp_path / name, "task")


def test_a_missing_file_and_a_bomb(tmp_path):
    with pytest.raises(InputError, match=r"none.txt cannot be read \(No such file or directory\); check it"):
        json_lines.texts(tmp_path / "none.txt", "task")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"a": "b"}\n' * 1000, mtime=0))
    with pytest.raises(InputError, match="has over 5,000 bytes; cut it"):
        json_lines.records(tmp_path / "x.jsonl.gz", {"a": str}, largest=5_000)

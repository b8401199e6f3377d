import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import source_of

from gpt2_jax.config import DataConfig
from gpt2_jax.data import prepare as preparing
from gpt2_jax.data import sources, tokenize
from gpt2_jax.data.documents import Document
from gpt2_jax.data.layout import lay_out
from gpt2_jax.data.manifest import locked
from gpt2_jax.data.prepared import Prepared, load_prepared, sha256_of
from gpt2_jax.data.tokenize import Division, document_hash
from gpt2_jax.errors import InputError
from gpt2_jax.tokenizer_training import train_bpe

SHAKESPEARE = Path(__file__).parents[2] / "../shared/data/tinyshakespeare.txt"
PARTS = 7  # of the poems
STORY = "".join(f"Chapter {i}.\nThe café on street {i * 7} was open; {i} cats sat there — 猫.\n\n" for i in range(60))


def quiet(message: str) -> None:
    pass


def prepare(config, directory, progress=quiet) -> Prepared:
    """The only corpus of `config`."""
    (prepared,) = preparing.prepare(config, directory, progress=progress).values()
    return prepared


@pytest.fixture
def story(tmp_path) -> DataConfig:
    (tmp_path / "story.txt").write_text(STORY)
    return DataConfig(
        source="files", paths=str(tmp_path / "story.txt"), tokenizer="characters", validation_fraction=0.1
    )


@pytest.fixture
def poems(tmp_path, monkeypatch) -> DataConfig:
    """Fifty lines of JSON, read in seven parts."""
    monkeypatch.setattr(sources, "PART_BYTES", 300)
    lines = [json.dumps({"text": f"Poem {i}: {'la ' * (i % 7)}{i * i}\nend"}) for i in range(50)]
    (tmp_path / "poems.jsonl").write_text("\n".join(lines))
    return DataConfig(
        source="files", paths=str(tmp_path / "poems.jsonl"), vocab_size=280, tokens_per_shard=100, workers=1
    )


def tokens(prepared, split) -> list[int]:
    return np.concatenate(prepared.tokens(split)).tolist()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name[0] != "."}


def divide(config, source) -> Division:
    return lay_out(config, source, map, quiet).division


def split_texts(config, source, split, division=None) -> list[tuple[str, bool]]:
    layout = lay_out(config, source, map, quiet)
    if division is not None:
        layout = dataclasses.replace(layout, division=division)
    tasks = layout.tasks(config, tokenize.Encoding(""), "<u2")
    return [
        (document.text, ends) for task in tasks for kind, document, ends in task.divided(Counter()) if kind == split
    ]


def test_characters_cut_at_the_tail(story, tmp_path):
    prepared = prepare(story, tmp_path / "out")
    cut = int(len(STORY) * 0.9)
    end = prepared.tokenizer.end_of_text
    assert tokens(prepared, "train") == prepared.tokenizer.encode(STORY[:cut])
    assert tokens(prepared, "validation") == [*prepared.tokenizer.encode(STORY[cut:]), end]
    assert prepared.count("train") == cut
    assert prepared.bytes_per_token("train") == len(STORY[:cut].encode()) / cut
    assert prepared.manifest["division"] == {"kind": "tail", "boundary": cut}
    assert (prepared.manifest["dtype"], prepared.manifest["vocab_size"]) == ("<u2", len(set(STORY)) + 1)
    assert [prepared.manifest["splits"][split]["documents"] for split in ("train", "validation")] == [1, 1]
    prepared.verify()


def test_documents_split_by_hash(poems, tmp_path):
    prepared = prepare(poems, tmp_path / "out")
    end = prepared.tokenizer.end_of_text
    texts = [json.loads(line)["text"] for line in Path(poems.paths).read_text().splitlines()]
    lowest = set(sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())[: round(50 * 0.05)])
    for split in ("train", "validation"):
        expected = [text for text in texts if (text in lowest) == (split == "validation")]
        assert tokens(prepared, split) == [t for text in expected for t in [*prepared.tokenizer.encode(text), end]]
        entry = prepared.manifest["splits"][split]
        assert entry["documents"] == len(expected)
        assert entry["bytes"] == sum(len(text.encode()) for text in expected)
        assert all(1 <= len(shard) <= 100 for shard in prepared.tokens(split))
    training = [text for text in texts if text not in lowest]
    assert prepared.tokenizer.to_json() == train_bpe(training, 280).to_json()


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason=f"{SHAKESPEARE} is not here")
def test_tinyshakespeare_is_divided_as_in_nanogpt(tmp_path):
    config = DataConfig(source="files", paths=str(SHAKESPEARE), tokenizer="characters", validation_fraction=0.1)
    prepared = prepare(config, tmp_path)
    assert len(prepared.tokenizer) == 65 + 1
    assert prepared.count("train") == 1_003_854
    assert prepared.count("validation") == 111_540 + 1
    assert prepared.tokenizer.decode(tokens(prepared, "train")[-20:]) == SHAKESPEARE.read_text()[1_003_834:1_003_854]


def test_wide_tokens(tmp_path, story):
    many = "".join(map(chr, [*range(0x4E00, 0x9FA0), *range(0xAC00, 0xD7A0), *range(0x20000, 0x29000)]))
    (tmp_path / "story.txt").write_text(many)
    prepared = prepare(story, tmp_path / "out")
    assert len(prepared.tokenizer) > 2**16
    assert prepared.manifest["dtype"] == "<u4"
    decoded = prepared.tokenizer.decode([*tokens(prepared, "train"), *tokens(prepared, "validation")])
    assert decoded == many


@given(
    st.lists(st.text("ab\n", min_size=1, max_size=9), min_size=2, max_size=30),
    st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.9]),
    st.sampled_from(["auto", "document", "tail"]),
    st.integers(1, 3),
)
def test_division(texts, fraction, split, parts):
    config, source = DataConfig(validation_fraction=fraction, split=split), source_of(texts, parts)
    try:
        division = divide(config, source)
    except InputError:
        return
    kind = split if split != "auto" else "document" if len(texts) >= 20 else "tail"
    assert division.kind == kind
    train, validation = (split_texts(config, source, name) for name in ("train", "validation"))
    assert train and validation
    whole = "".join(texts)
    if kind == "tail":
        assert "".join(text for text, _ in train) == whole[: int(len(whole) * (1 - fraction))]
        assert "".join(text for text, _ in train + validation) == whole
        assert sum(ends for _, ends in train + validation) == len(texts)
    else:
        assert not {text for text, _ in train} & {text for text, _ in validation}
        assert sorted(text for text, _ in train + validation) == sorted(texts)
        assert len(validation) >= max(1, round(len(texts) * fraction))
        assert all(ends for _, ends in train + validation)


def test_tail_cut_between_documents():
    config, source = DataConfig(split="tail", validation_fraction=0.7), source_of(["abc", "defgh", "ij"], 2)
    assert split_texts(config, source, "train", Division("tail", 3)) == [("abc", True)]
    assert split_texts(config, source, "validation", Division("tail", 3)) == [("defgh", True), ("ij", True)]
    assert split_texts(config, source, "train", Division("tail", 5)) == [("abc", True), ("de", False)]


def test_documents_added_elsewhere_move_no_other():
    texts = [f"document {i}" for i in range(40)]
    config = DataConfig(validation_fraction=0.1)
    few, more = divide(config, source_of(texts)), divide(config, source_of([*texts, *(f"new {i}" for i in range(40))]))
    hashes = sorted(document_hash(Document(text, "")) for text in texts)
    assert abs(sum(h <= few.boundary for h in hashes) - sum(h <= more.boundary for h in hashes)) <= 4


@pytest.mark.parametrize(
    ("texts", "options", "says"),
    [
        (
            ["a"] * 30,
            {},
            "^the corpus has 30 documents \\(1 different\\), and data.validation_fraction 0.05 leaves none to",
        ),
        (["ab"], {"split": "document"}, "has 1 documents .* give more documents, or use --config.data.split=tail$"),
        (["a"], {}, "^the corpus has 1 characters, and data.validation_fraction 0.05 puts 0 of them in the training"),
    ],
)
def test_an_empty_split(texts, options, says):
    with pytest.raises(InputError, match=says):
        divide(DataConfig(**options), source_of(texts))


def test_long_documents_are_encoded_in_pieces(story, tmp_path, monkeypatch):
    config = dataclasses.replace(story, tokenizer="bpe", vocab_size=300)
    whole = prepare(config, tmp_path / "whole")
    cut = tokenize.pieces
    monkeypatch.setattr(tokenize, "pieces", lambda text: cut(text, 100))
    monkeypatch.setattr(tokenize, "BATCH_CHARACTERS", 250)
    in_pieces = prepare(config, tmp_path / "pieces")
    assert contents(in_pieces.directory) == contents(whole.directory)
    assert not any("_" in name or "unfinished" in name for name in contents(whole.directory))


def test_done_once(poems, tmp_path, monkeypatch):
    prepare(poems, tmp_path / "out")
    before, said = contents(tmp_path / "out"), []
    monkeypatch.setattr(preparing, "begin", None)
    again = prepare(poems, tmp_path / "out", progress=said.append)
    assert contents(tmp_path / "out") == before
    assert again.count("train") == load_prepared(tmp_path / "out").count("train")
    assert len(said) == 1 and said[0].startswith(f"{tmp_path / 'out'} holds the tokens already: {poems.paths}: 1 file")


class Killed(BaseException):
    """Like the end of a process: no `except Exception` sees it."""


@pytest.mark.parametrize("late", [False, True], ids=["before the rename", "after it"])
def test_killed_anywhere_and_resumed(poems, tmp_path, monkeypatch, late):
    monkeypatch.setattr(tokenize, "BATCH_CHARACTERS", 100)
    poems = dataclasses.replace(poems, tokens_per_shard=80)
    prepare(poems, tmp_path / "whole")
    replace, left = os.replace, 0

    def dying(source, target):
        nonlocal left
        left -= 1
        if left >= 0 or late:
            replace(source, target)
        if left < 0:
            raise Killed

    renames, resumed = 0, []
    for renames in range(1000):
        left = renames
        monkeypatch.setattr(os, "replace", dying)
        try:
            prepare(poems, tmp_path / str(renames))
        except Killed:
            pass
        else:
            break
        monkeypatch.setattr(os, "replace", replace)
        prepare(poems, tmp_path / str(renames), progress=resumed.append)
        assert contents(tmp_path / str(renames)) == contents(tmp_path / "whole")
    shards, parts = len(list((tmp_path / "whole").glob("*.bin"))), PARTS
    assert shards >= 8
    assert renames == 2 + shards + parts + 1  # tokenizer and record, shards, each part's record, the manifest
    finished = [message for message in resumed if message.startswith("going on after")]
    assert finished[-1] == f"going on after {parts} finished parts, {shards} shards"


def test_interrupted_twice(poems, tmp_path):
    prepare(poems, tmp_path / "whole")

    def stop(message):
        if ": part " in message:
            raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            prepare(poems, tmp_path / "out", progress=stop)
    assert len(json.loads((tmp_path / "out" / "progress.json").read_text())["parts"]) == 3
    prepare(poems, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def stop_after_parts(config, directory, parts):
    def stop(message):
        if f": part {parts} of" in message:
            raise Killed

    with pytest.raises(Killed):
        prepare(config, directory, progress=stop)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda out: (out / "train-00001-00000.bin").write_bytes(b"xx"),
            "train-00001-00000.bin is not as it was written: making its part again",
        ),
        (lambda out: (out / "tokenizer.json").unlink(), "tokenizer.json is not as it was written: starting over"),
        (lambda out: (out / "progress.json").write_text("{"), "reading"),
    ],
)
def test_damaged_work_is_done_again(poems, tmp_path, damage, says):
    prepare(poems, tmp_path / "whole")
    stop_after_parts(poems, tmp_path / "out", 4)
    damage(tmp_path / "out")
    said = []
    prepare(poems, tmp_path / "out", progress=said.append)
    assert says in said[0]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_unfinished_work_of_other_options_is_left_alone(poems, tmp_path):
    out = tmp_path / "out"
    stop_after_parts(poems, out, 4)
    before = contents(out)
    redo = f"; delete {out} to make it again, or choose another workdir$"
    with pytest.raises(InputError, match=r"out holds unfinished tokens of another corpus: data.tokens_per_shard was 1"):
        prepare(dataclasses.replace(poems, tokens_per_shard=10**6), out)
    stat = os.stat(poems.paths)
    os.utime(poems.paths, (1, 1))
    with pytest.raises(
        InputError, match=r"unfinished tokens of another corpus: the corpus changed \(it was .*\)" + redo
    ):
        prepare(poems, out)
    os.utime(poems.paths, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert contents(out) == before
    record = json.loads((out / "progress.json").read_text())
    (out / "progress.json").write_text(json.dumps(record | {"format": 1}))
    with pytest.raises(InputError, match=r"corpus: they are of format 1, this version writes 2" + redo):
        prepare(poems, out)
    (out / "progress.json").write_bytes(before["progress.json"])
    prepare(poems, out)


def test_full_disk(poems, tmp_path, monkeypatch):
    prepare(poems, tmp_path / "whole")
    fsync, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 7:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError) as caught:
        prepare(poems, tmp_path / "out")
    assert str(caught.value) == (
        f"{tmp_path / 'out' / 'train-00002-00000.bin'} cannot be written (No space left on device); make room and run"
        " again: it goes on after the finished parts"
    )
    assert "train-00000-00000.bin" in contents(tmp_path / "out")
    prepare(poems, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_file_size_limit_of_the_system(tmp_path):
    script = f"""
import resource, signal
from gpt2_jax.config import DataConfig
from gpt2_jax.data.prepare import prepare
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
config = DataConfig(source="files", paths={str(tmp_path / "story.txt")!r}, tokenizer="characters")
try:
    prepare(config, {str(tmp_path / "out")!r}, progress=lambda _: None)
except ValueError as error:
    print(error)
import sys
import threading
import time
print("tensorflow" in sys.modules)
"""
    (tmp_path / "story.txt").write_text(STORY * 10)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    error, tensorflow = done.stdout.splitlines()
    assert error.startswith(
        f"{tmp_path / 'out' / 'train-00000-00000.bin'} cannot be written (File too large); make room"
    )
    assert set(contents(tmp_path / "out")) == {"progress.json", "tokenizer.json"}
    assert tensorflow == "False", "preparing data must not pay for importing TensorFlow"


def test_other_options_are_refused(poems, tmp_path):
    out = tmp_path / "out"
    prepare(poems, out)
    with pytest.raises(InputError) as caught:
        prepare(dataclasses.replace(poems, vocab_size=300, split="tail"), out)
    assert str(caught.value) == (
        f"{out} holds tokens of another corpus: data.split was 'auto' and is 'tail'; data.vocab_size was 280 and is"
        f" 300; delete {out} to make it again, or choose another workdir"
    )
    with open(poems.paths, "a") as file:
        file.write('\n{"text": "new"}')
    with pytest.raises(
        InputError, match=r"another corpus: the corpus changed \(it was .*poems.jsonl: 1 file, 0.00 MB\);"
    ):
        prepare(poems, out)
    os.remove(poems.paths)
    assert prepare(poems, out).count("train") > 0  # a workdir may move to where the corpus is not


def test_tokenizer_from_a_path(poems, tmp_path):
    mine = train_bpe(["la la poem"], 260).save(tmp_path / "mine.json")
    config = dataclasses.replace(poems, tokenizer=str(mine))
    prepared = prepare(config, tmp_path / "out")
    assert prepared.tokenizer.to_json() == mine.read_text()
    prepare(config, tmp_path / "out")
    train_bpe(["other text"], 260).save(mine)
    with pytest.raises(InputError, match=r"the tokenizer at .*mine.json changed; delete .*out to make it again"):
        prepare(config, tmp_path / "out")


def test_damaged_folders(poems, tmp_path):
    out = tmp_path / "out"
    redo = f"; delete {out} to make it again, or choose another workdir$"
    with pytest.raises(InputError, match=r"out holds no manifest.json, so no tokens; prepare makes them$"):
        load_prepared(out)
    prepared = prepare(poems, out)
    shard = out / "train-00002-00000.bin"
    data = shard.read_bytes()

    shard.write_bytes(data[:-2] + b"??")
    with pytest.raises(InputError, match=r"train-00002-00000.bin is corrupted: its sha256 is not [0-9a-f]{64}" + redo):
        prepared.verify()
    with pytest.raises(InputError, match=r"train-00002-00000.bin is corrupted: its sha256 is not"):
        prepare(poems, out)
    shard.write_bytes(data[:-1])
    with pytest.raises(InputError, match=r"train-00002-00000.bin is cut: it has 199 bytes of 200" + redo):
        load_prepared(out)
    shard.unlink()
    with pytest.raises(InputError, match=r"train-00002-00000.bin is missing" + redo):
        prepare(poems, out)
    (out / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match=r"out has format 99, this version reads 1 and 2" + redo):
        load_prepared(out)
    (out / "manifest.json").write_text("{")
    with pytest.raises(InputError, match=r"manifest.json is corrupted \(Expecting property name .*\)" + redo):
        load_prepared(out)


def test_files_are_verified_once(poems, tmp_path, monkeypatch):
    out, read = tmp_path / "out", []
    prepare(poems, out)
    monkeypatch.setattr("gpt2_jax.data.prepared.sha256_of", lambda path: read.append(path.name) or sha256_of(path))
    prepare(poems, out)
    assert read == []
    shard = out / "train-00002-00000.bin"
    shard.write_bytes(shard.read_bytes())
    prepare(poems, out)
    prepare(poems, out)
    assert read == [shard.name]
    (out / ".verified.json").write_text("{")
    prepare(poems, out)
    assert len(read) == 1 + len(list(out.glob("*.bin"))) + 1


def test_tokens_that_cannot_be_written_to_are_read_each_time(poems, tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare(poems, out)
    (out / ".verified.json").unlink()
    (out / ".verified.json").mkdir()  # stands for a folder that only others may write to
    monkeypatch.setattr(Prepared, "_verified", lambda _: {})
    prepare(poems, out)


@pytest.mark.parametrize("encoder", ["tokenizers", "tiktoken"])
def test_special_tokens_that_a_text_spells(tmp_path, encoder):
    """Text like any other, unless they are allowed."""
    stories = ["Once there was a cat.\n", "\nA dog ran <|endoftext|", ">\n"]
    (tmp_path / "stories.txt").write_text("<|endoftext|>".join(stories) * 20)
    config = DataConfig(
        source="files", paths=str(tmp_path / "stories.txt"), tokenizer="bpe", vocab_size=300, encoder=encoder,
        workers=1, validation_fraction=0.1,
    )  # fmt: skip
    plain = prepare(config, tmp_path / "plain")
    end = plain.tokenizer.end_of_text
    assert tokens(plain, "train").count(end) + tokens(plain, "validation").count(end) == 1
    config = dataclasses.replace(config, allow_special=True)
    with pytest.raises(InputError, match=r"data.allow_special was False and is True"):
        prepare(config, tmp_path / "plain")
    divided = prepare(config, tmp_path / "divided")
    text = (tmp_path / "stories.txt").read_text()
    cut = int(len(text) * 0.9)
    tokenizer = divided.tokenizer
    assert tokens(divided, "train") == tokenizer.encode(text[:cut], allow_special=True)
    assert tokens(divided, "train").count(tokenizer.end_of_text) == text[:cut].count("<|endoftext|>") > 30
    learnt = len(text[:cut].replace("<|endoftext|>", "").encode())
    assert divided.manifest["splits"]["train"]["bytes"] == learnt
    assert "endo" not in json.loads(tokenizer.to_json())["model"]["vocab"]
    assert "".join(part for part in tokenizer.split_special(text) if isinstance(part, str)) == text.replace(
        "<|endoftext|>", ""
    )


def test_wrong_arguments(poems, tmp_path):
    prepared = prepare(poems, tmp_path / "out")
    with pytest.raises(InputError, match=r"^split is 'test'; it must be 'train' or 'validation'$"):
        prepared.count("test")
    with pytest.raises(InputError, match=r"poems.jsonl cannot be made \(.*\); choose another workdir$"):
        prepare(poems, poems.paths)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40), min_size=2, max_size=12),
    st.integers(1, 30),
)
def test_round_trip(tmp_path_factory, texts, tokens_per_shard):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "x.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    config = DataConfig(
        source="files", paths=str(folder), tokenizer="characters", split="tail", tokens_per_shard=tokens_per_shard
    )
    kept = [text for text in texts if text.strip()]
    if sum(map(len, kept)) < 20:
        return
    prepared = prepare(config, folder / "out")
    both = [*tokens(prepared, "train"), *tokens(prepared, "validation")]
    assert prepared.tokenizer.decode(both) == "".join(kept)
    assert both.count(prepared.tokenizer.end_of_text) == len(kept)
    assert prepared.count("train") + prepared.count("validation") == len(both)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_change_no_byte(poems, tmp_path, workers):
    prepare(poems, tmp_path / "one")
    prepare(dataclasses.replace(poems, workers=workers), tmp_path / "several")
    assert contents(tmp_path / "several") == contents(tmp_path / "one")


PREPARE = """
import sys
import threading
import time
from gpt2_jax.config import DataConfig
from gpt2_jax.data import sources
from gpt2_jax.data.prepare import prepare

sources.PART_BYTES = 20_000
if __name__ == "__main__":
    config = DataConfig(source="files", paths=sys.argv[1], tokenizer=sys.argv[2], tokens_per_shard=900, workers=2)
    prepare(config, sys.argv[3], progress=lambda line: print(line, flush=True))
"""


def test_a_killed_process_leaves_no_other_and_is_gone_on_with(tmp_path):
    lines = [json.dumps({"text": f"Poem {i}: {'la ' * (i % 70)}{i * i}\nend"}) for i in range(2000)]
    (tmp_path / "poems.jsonl").write_text("\n".join(lines))
    train_bpe([lines[69]], 300).save(tmp_path / "mine.json")
    (tmp_path / "run.py").write_text(PREPARE)
    run = [sys.executable, "run.py", "poems.jsonl", "mine.json"]
    subprocess.run([*run, "whole"], check=True, cwd=tmp_path, capture_output=True)

    process = subprocess.Popen([*run, "out"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True)
    seen = 0
    for line in process.stdout:
        seen += ": part " in line
        if seen == 2:
            break
    process.kill()
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(process.pid), "a worker outlived the process that it worked for"
    assert not (tmp_path / "out" / "manifest.json").exists()
    again = subprocess.run([*run, "out"], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert "going on after" in again.stdout
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def alive(session: int) -> bool:
    """Whether a process of the session is left."""
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


def write_lines(path, records):
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_duplicates_after_the_first_are_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PART_BYTES", 100)
    path = write_lines(tmp_path / "x.jsonl", [{"text": f"text {i % 20}"} for i in range(50)])
    options = {"source": "files", "paths": str(path), "tokenizer": "characters", "workers": 1}
    prepared = prepare(DataConfig(deduplicate=True, **options), tmp_path / "out")
    decoded = prepared.tokenizer.decode([*tokens(prepared, "train"), *tokens(prepared, "validation")])
    assert sorted(decoded.split("text")[1:]) == sorted(f" {i}" for i in range(20))
    assert prepared.manifest["counts"] == {"duplicate": 30, "kept": 20}
    tail = prepare(DataConfig(deduplicate=True, split="tail", validation_fraction=0.5, **options), tmp_path / "tail")
    both = [tail.tokenizer.decode(tokens(tail, split)) for split in ("train", "validation")]
    assert "".join(both) == "".join(f"text {i}" for i in range(20))
    assert len(both[0]) == sum(len(f"text {i}") for i in range(20)) // 2
    whole = prepare(DataConfig(**options), tmp_path / "whole")
    assert whole.manifest["counts"] == {"kept": 50}


def test_prompts_are_written_and_masked(tmp_path):
    records = [{"q": f"{i}+{i}=", "text": str(2 * i)} for i in range(40)]
    path = write_lines(tmp_path / "x.jsonl", records)
    config = DataConfig(source="files", paths=str(path), tokenizer="characters", prompt_key="q", tokens_per_shard=50)
    prepared = prepare(config, tmp_path / "out")
    end = prepared.tokenizer.end_of_text
    for split in ("train", "validation"):
        bits = [
            np.unpackbits(bits)[: len(shard)] for bits, shard in zip(prepared.learnt(split), prepared.tokens(split))
        ]
        assert len(bits) > (split == "train")
        ids, learnt = np.array(tokens(prepared, split)), np.concatenate(bits).astype(bool)
        assert learnt[ids == end].all()
        ends = np.flatnonzero(ids == end)
        for document, mask in zip(np.split(ids, ends[:-1] + 1), np.split(learnt, ends[:-1] + 1)):
            text, answer = (prepared.tokenizer.decode(part) for part in (document, document[mask]))
            assert text.endswith("=" + answer) and {"q": text.removesuffix(answer), "text": answer} in records
        entry = prepared.manifest["splits"][split]
        assert entry["learnt"] == learnt.sum() < entry["tokens"]
        answers = prepared.tokenizer.decode(ids[learnt])
        assert prepared.bytes_per_token(split) == len(answers) / learnt.sum()
    prepared.verify()
    mask = tmp_path / "out" / "train-00000-00001.mask"
    mask.write_bytes(mask.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"train-00000-00001.mask is cut: it has 6 bytes of 7"):
        load_prepared(tmp_path / "out")


def test_a_mixture_shares_a_tokenizer_and_has_a_folder_a_source(tmp_path):
    write_lines(tmp_path / "train.jsonl", [{"text": f"once upon a time {i}"} for i in range(60)])
    (tmp_path / "poem.txt").write_text("\n".join(f"a rose {i}" for i in range(50)))
    paths = f"mine: {tmp_path / 'poem.txt'}; somebody/tales: {tmp_path}"
    both = DataConfig(source="mine=3, somebody/tales", paths=paths, vocab_size=300, control_codes=True, workers=1)
    both = dataclasses.replace(both, split="tail", validation_fraction=0.2)
    found = preparing.prepare(both, tmp_path / "out", progress=quiet)
    assert list(found) == ["mine", "somebody/tales"]
    assert [prepared.directory.name for prepared in found.values()] == ["mine", "somebody--tales"]
    one, other = found.values()
    assert one.tokenizer.to_json() == other.tokenizer.to_json()
    codes = [one.tokenizer.encode(code, allow_special=True) for code in ("<|mine|>", "<|tales|>")]
    assert [len(code) for code in codes] == [1, 1] and len(one.tokenizer) == 302
    end = one.tokenizer.end_of_text
    for prepared, (code,) in zip(found.values(), codes):
        ids = np.array(tokens(prepared, "train"))
        begins = [0, *(np.flatnonzero(ids == end) + 1)]
        begins = [i for i in begins if i < len(ids)]
        assert (ids[begins] == code).all() and (ids == code).sum() == len(begins)
    again = preparing.prepare(both, tmp_path / "out", progress=quiet)
    assert [p.manifest for p in again.values()] == [p.manifest for p in found.values()]


def test_a_mixture_goes_on_after_a_finished_source(tmp_path):
    write_lines(tmp_path / "train.jsonl", [{"text": f"once upon a time {i}"} for i in range(60)])
    paths = f"mine: {tmp_path / 'train.jsonl'}; somebody/tales: {tmp_path}"
    both = DataConfig(source="mine, somebody/tales", paths=paths, vocab_size=300, split="document", workers=1)
    preparing.prepare(both, tmp_path / "whole", progress=quiet)

    def stop(message):
        if message.startswith("somebody--tales: part 1 of"):
            raise Killed

    with pytest.raises(Killed):
        preparing.prepare(both, tmp_path / "out", progress=stop)
    assert (tmp_path / "out" / "mine" / "manifest.json").exists()
    assert not (tmp_path / "out" / "somebody--tales" / "manifest.json").exists()
    preparing.prepare(both, tmp_path / "out", progress=quiet)
    for name in ("mine", "somebody--tales"):
        assert contents(tmp_path / "out" / name) == contents(tmp_path / "whole" / name)


def test_a_dataset_of_the_hub_is_divided_by_hash_without_being_read_twice(tmp_path):
    texts = [f"text {i}" for i in range(200)]
    write_lines(tmp_path / "train.jsonl", [{"text": text} for text in texts])
    train_bpe(texts, 300).save(tmp_path / "mine.json")
    config = DataConfig(
        source="a/b", paths=str(tmp_path), tokenizer=str(tmp_path / "mine.json"), validation_fraction=0.2
    )
    said = []
    prepared = prepare(config, tmp_path / "out", progress=said.append)
    assert not any(line.startswith("reading") for line in said)
    held = {text for text in texts if document_hash(Document(text, "")) <= int(0.2 * 2**64)}
    assert prepared.manifest["splits"]["validation"]["documents"] == len(held)
    few = dataclasses.replace(config, validation_fraction=1e-9)
    with pytest.raises(InputError, match=r"the validation split of a/b has no document; change data.valid"):
        prepare(few, tmp_path / "few")


def test_folders_of_format_1_still_open(poems, tmp_path):
    out = tmp_path / "out"
    prepared = prepare(poems, out)
    manifest = json.loads((out / "manifest.json").read_text())
    old = ["paths", "decode_errors", "split", "validation_fraction", "tokenizer", "vocab_size", "tokens_per_shard"]
    manifest["options"] = {k: v for k, v in manifest["options"].items() if k in old} | {
        "source": "files", "text_key": "text",
    }  # fmt: skip
    manifest["format"] = 1
    del manifest["counts"]
    for split in manifest["splits"].values():
        del split["learnt"], split["largest"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    again = prepare(poems, out)
    assert tokens(again, "train") == tokens(prepared, "train")
    assert again.bytes_per_token("train") == prepared.bytes_per_token("train") and again.learnt("train") is None


def test_ids_outside_the_vocabulary_are_found(poems, tmp_path):
    prepare(poems, tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["splits"]["train"]["largest"] = 280
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"has token 280, and its vocabulary 280 entries; delete .* to make it again"):
        load_prepared(tmp_path)


def test_the_script_prepares_and_explains(tmp_path, pytestconfig):
    path = write_lines(tmp_path / "x.jsonl", [{"text": f"text {i}"} for i in range(40)])
    script = [sys.executable, str(pytestconfig.rootpath / "scripts" / "prepare_data.py"), f"--out={tmp_path / 'out'}"]
    run = lambda *flags: subprocess.run([*script, *flags], capture_output=True, text=True)
    done = run(f"--paths={path}", "--vocab_size=270", "--min_characters=7")
    assert done.returncode == 0, done.stderr
    assert "left out 10 too short; vocabulary of" in done.stdout
    assert load_prepared(tmp_path / "out").manifest["counts"] == {"kept": 30, "too short": 10}
    wrong = run("--paths=nowhere.txt", f"--out={tmp_path / 'other'}")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: data.paths: 'nowhere.txt' matches no .txt")
    assert len(wrong.stderr.splitlines()) == 1


def test_two_that_prepare_the_same_folder(poems, tmp_path):
    """The second waits, and finds the tokens done; one whose holder died goes on."""
    said, done = [], threading.Event()

    def second():
        prepare(poems, tmp_path / "out", progress=said.append)
        done.set()

    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", lambda _: None) as waited:
        assert not waited
        thread = threading.Thread(target=second)
        thread.start()
        while not said:
            time.sleep(0.01)
        assert said == [f"another process writes tokens to {tmp_path / 'out'}: waiting for it"]
        assert not done.wait(0.7)
    thread.join(60)
    assert done.is_set()
    prepare(poems, tmp_path / "alone")
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")

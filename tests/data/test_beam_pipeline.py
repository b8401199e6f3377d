import dataclasses
import json
import os

import pytest

pytest.importorskip("apache_beam", reason="Apache Beam is not installed")

from gpt2_jax.config import DataConfig
from gpt2_jax.data import prepare as local
from gpt2_jax.data import sources
from gpt2_jax.data.layout import lay_out
from gpt2_jax.errors import InputError

pytestmark = pytest.mark.filterwarnings("default:::apache_beam", "default:::google", "ignore::ResourceWarning")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Fifty lines of JSON in seven parts."""
    monkeypatch.setattr(sources, "PART_BYTES", 300)
    lines = [json.dumps({"text": f"Poem {i}: {'la ' * (i % 7)}{i * i}\nend", "q": "la?"}) for i in range(50)]
    (tmp_path / "poems.jsonl").write_text("\n".join(lines))
    paths = str(tmp_path / "poems.jsonl")
    return DataConfig(source="files", paths=paths, vocab_size=280, tokens_per_shard=100, workers=1)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name[0] != "."}


def prepare(config, out, **options):
    from gpt2_jax.data import beam

    return beam.prepare(config, str(out), progress=lambda _: None, **options)


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, []),
        (
            {"prompt_key": "q", "control_codes": True},
            ["--direct_num_workers=2", "--direct_running_mode=multi_threading"],
        ),
    ],
)
def test_the_shards_are_those_of_the_local_road(config, tmp_path, changes, options):
    config = dataclasses.replace(config, **changes)
    local.prepare(config, tmp_path / "local", progress=lambda _: None)
    manifests = prepare(config, tmp_path / "beam", options=options)
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    assert manifests["files"]["splits"]["train"]["documents"] > 40
    with pytest.raises(InputError, match="holds other tokens, or finished ones; delete it, or choose another --out"):
        prepare(config, tmp_path / "beam")


def test_a_pipeline_that_failed_goes_on_after_its_finished_parts(config, tmp_path):
    from gpt2_jax.data import beam

    local.prepare(config, tmp_path / "local", progress=lambda _: None)
    corpus = tmp_path / "poems.jsonl"
    lines, stat = corpus.read_text(), corpus.stat()
    layout = lay_out(config, sources.open_source(config), map, lambda _: None)
    tokenizer = local.shared_tokenizer(config, {"files": layout}, lambda _: None)
    folder = str(tmp_path / "out")
    run = lambda options=(): beam._prepare_source(config, layout, tokenizer, folder, options, lambda _: None)
    *head, last = lines.splitlines(keepends=True)
    corpus.write_text("".join([*head, last.replace("{", "!")]))
    os.utime(corpus, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same corpus as far as its fingerprint tells
    for options in ([], ["--direct_num_workers=2", "--direct_running_mode=multi_threading"]):
        with pytest.raises(
            InputError,
            match=r"^the pipeline failed \(/[^(]*poems.jsonl@\d+ is not JSON \([^)]*\).*; run it again: it goes",
        ) as caught:
            run(options)
        assert len(str(caught.value).splitlines()) == 1 and "while running" not in str(caught.value)
    assert not (tmp_path / "out" / "manifest.json").exists()
    corpus.write_text(lines)
    os.utime(corpus, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    written = {path: path.stat().st_ino for path in (tmp_path / "out").glob("*.bin")}
    finished = {path.name[5:10] for path in (tmp_path / "out").glob("part-*.json")}
    run()
    assert contents(tmp_path / "out") == contents(tmp_path / "local")
    for path, inode in written.items():
        if path.name.split("-")[1] in finished:
            assert path.stat().st_ino == inode


def test_folders_that_cannot_be(config, tmp_path):
    with pytest.raises(
        InputError, match=r"^foo://here cannot be made \(Unable to get filesystem .*\); choose another --"
    ):
        prepare(config, "foo://here")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/out cannot be made \(.*Not a directory.*\); choose another --out$"):
        prepare(config, tmp_path / "file" / "out")


def test_a_pipeline_that_cannot_start(config, tmp_path):
    with pytest.raises(
        InputError, match=r"^the pipeline failed \(ValueError: Unexpected pipeline runner: Fast\. .*; run"
    ):
        prepare(config, tmp_path / "out", options=["--runner=Fast"])

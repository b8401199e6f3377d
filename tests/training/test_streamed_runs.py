"""Runs on streamed text, and on prepared text beside them, by one, two and four processes."""

import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import join, run_together
from short_runs import use_devices, watch_batches

import gpt2_jax
from gpt2_jax import InputError
from gpt2_jax.data import reader
from gpt2_jax.data.prepared import load_prepared
from gpt2_jax.data.sources import Source
from gpt2_jax.tokenizer_training import train_bpe
from gpt2_jax.training import loop
from gpt2_jax.training.checkpoint import Checkpoints

PARTS, STEPS = 5, 12  # parts: more than readers, and no multiple of processes


def options(folder: Path, **data) -> dict:
    """Twelve steps over the files in `folder`, of one layer."""
    return {
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 0, "resid_pdrop": 0.1},
        "data": {
            "source": "files", "paths": str(folder / "texts"), "tokenizer": str(folder / "tokenizer.json"),
            "road": "stream", "readers": 4, "shuffle_windows": 16, "validation_fraction": 0.1,
            "mask_documents": True, "min_characters": 12,
        } | data,
        "optimizer": {"learning_rate": 1e-2, "final_learning_rate": 1e-3, "warmup_steps": 2},
        "training": {"steps": STEPS, "batch_size": 4, "log_every": 1, "sample_tokens": 0},
        "evaluation": {"every": 4, "windows": 2},
        "checkpoint": {"every": 6},
    }  # fmt: skip


def write_corpus(folder: Path, documents: int = 40) -> None:
    (folder / "texts").mkdir(parents=True)
    for part in range(PARTS):
        texts = [f"tale {part}.{i}: " + "there was a red rose; " * (i * 5 % 4) for i in range(documents)]
        (folder / "texts" / f"{part}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    train_bpe(["tale 0123456789.: there was a red rose; "], 270).save(folder / "tokenizer.json")


def copy_broken(corpus: Path, folder: Path, line: int) -> None:
    """The corpus where, in both parts of the last reader, one line is no JSON."""
    shutil.copytree(corpus / "texts", folder / "texts")
    shutil.copy(corpus / "tokenizer.json", folder)
    for part in (3, 4):
        file = folder / "texts" / f"{part}.jsonl"
        lines = file.read_text().splitlines()
        lines[line] = "no JSON"
        file.write_text("\n".join(lines) + "\n")


def run(config: dict, workdir: Path, monkeypatch, at_batch=lambda number: None) -> tuple[loop.Outcome, list[str]]:
    """Trains; returns the outcome and what the devices of this process got: call, entry, row, hash."""
    seen, calls, plain = [], iter(range(10_000)), loop.global_batch

    def watched(batch, mesh):
        call = next(calls)
        at_batch(call)
        whole = plain(batch, mesh)
        for name, rows in whole.items():
            for shard in rows.addressable_shards:
                for row, values in enumerate(np.asarray(shard.data), shard.index[0].start or 0):
                    seen.append(f"{call} {name} {row} {hashlib.sha256(values.tobytes()).hexdigest()}")
        return whole

    with monkeypatch.context() as patch:
        use_devices(patch, one_device_each())
        watch_batches(patch, watched)
        patch.setattr(reader, "BATCH_CHARACTERS", 200)
        return loop.train(config, workdir), seen


def one_device_each() -> list[jax.Device]:
    return [next(d for d in jax.devices() if d.process_index == i) for i in range(jax.process_count())]


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> dict[tuple[int, str], float]:
    found = [((line["step"], key), line[key]) for line in lines(workdir) for key in line if "loss" in key]
    assert len(found) == len(dict(found))
    return dict(found)


def parameters(workdir: Path) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(gpt2_jax.load(workdir).model)]


def saved_steps(workdir: Path) -> list[int]:
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.steps


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


@pytest.fixture(scope="module")
def straight(corpus) -> tuple[Path, list[str]]:
    """A run that nothing interrupts, and its batches."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        outcome, seen = run(options(corpus), corpus / "straight", monkeypatch)
    assert (outcome.step, outcome.signal) == (STEPS, None)
    return corpus / "straight", seen


def assert_equal_runs(workdir: Path, straight: Path) -> None:
    assert losses(workdir) == losses(straight)
    jax.tree.map(np.testing.assert_array_equal, parameters(workdir), parameters(straight))


def test_it_says_what_it_reads_and_leaves_out(corpus, straight, tmp_path, monkeypatch, capfd):
    run(options(corpus, min_characters=20), tmp_path / "run", monkeypatch)
    said = capfd.readouterr().out
    assert f"streaming {corpus / 'texts'}: 5 files" in said
    kept, short = re.search(r"documents read since the start: (\d+) kept; left out: (\d+) too short\n", said).groups()
    assert int(kept) > 4 * int(short) / 3 > 0


def test_a_stopped_run_goes_on_bit_for_bit(corpus, straight, tmp_path, monkeypatch):
    stop = lambda call: os.kill(os.getpid(), signal.SIGTERM) if call == 7 else None
    outcome, _ = run(options(corpus), tmp_path / "run", monkeypatch, stop)
    assert outcome.signal == signal.SIGTERM and 0 < outcome.step < STEPS
    outcome, _ = run(options(corpus), tmp_path / "run", monkeypatch)
    assert outcome.step == STEPS
    assert_equal_runs(tmp_path / "run", straight[0])


@pytest.mark.parametrize("every", [1, 5])
def test_a_source_that_fails_ends_the_run_with_all_that_was_learnt(corpus, straight, tmp_path, monkeypatch, every):
    """Also where the step before was just validated; with the line mended, it is as if nothing had been."""
    copy_broken(corpus, tmp_path, line=10)
    config = options(tmp_path)
    config["evaluation"]["every"] = every
    config["checkpoint"]["every"] = 100
    workdir = tmp_path / "run"
    with pytest.raises(InputError, match=r"\.jsonl:11 is not JSON"):
        run(config, workdir, monkeypatch)
    (step,) = saved_steps(workdir)
    assert 0 < step < STEPS and max(line["step"] for line in lines(workdir) if "train_loss" in line) == step

    with pytest.raises(InputError, match=r"\.jsonl:11 is not JSON"):  # again, without another step
        run(config, workdir, monkeypatch)
    assert saved_steps(workdir) == [step]

    shutil.copytree(corpus / "texts", tmp_path / "texts", dirs_exist_ok=True)
    with pytest.raises(
        InputError,
        match=r"files of files were added, removed or written to since the checkpoint was saved, .*; put them back, "
        r"start anew in another --workdir, or go on from there all the same with --config.data.accept_changes=True",
    ):
        run(config, workdir, monkeypatch)
    config["data"]["accept_changes"] = True
    outcome, _ = run(config, workdir, monkeypatch)
    assert outcome.step == STEPS
    wanted = losses(straight[0])
    assert {key: value for key, value in losses(workdir).items() if key[1] == "train_loss"} == {
        key: value for key, value in wanted.items() if key[1] == "train_loss"
    }


def test_a_source_that_fails_at_once_leaves_no_checkpoint(corpus, tmp_path, monkeypatch):
    copy_broken(corpus, tmp_path, line=1)
    with pytest.raises(InputError, match=r"\.jsonl:2 is not JSON"):
        run(options(tmp_path), tmp_path / "run", monkeypatch)
    assert saved_steps(tmp_path / "run") == []
    assert lines(tmp_path / "run") == []


def test_a_run_fills_the_tokens_of_the_next(corpus, straight, tmp_path, monkeypatch, capfd):
    tokens = tmp_path / "tokens"
    config = options(corpus, fill_prepared=True, prepared=str(tokens))
    config["training"]["steps"] = 100
    run(config, tmp_path / "run", monkeypatch)
    assert len(list(tokens.glob("part-*.json"))) == PARTS
    first = {key: value for key, value in losses(tmp_path / "run").items() if key[0] <= 2}
    assert first == {key: value for key, value in losses(straight[0]).items() if key in first}
    broken = tmp_path / "broken"
    broken.mkdir()
    copy_broken(corpus, broken, line=39)
    with pytest.raises(InputError, match=r"tokens holds unfinished tokens of another corpus: data.paths was"):
        run(options(broken, fill_prepared=True, prepared=str(tokens)), tmp_path / "other", monkeypatch)
    run(options(corpus, road="prepared", prepared=str(tokens)), tmp_path / "next", monkeypatch)
    assert f"going on after {PARTS} finished parts" in capfd.readouterr().out
    load_prepared(tokens).verify()


@pytest.fixture(scope="module")
def alone(corpus, straight) -> dict[str, tuple[Path, list[str]]]:
    """Of each road a run by one process, and its batches."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _, seen = run(options(corpus, road="prepared"), corpus / "prepared", monkeypatch)
    return {"stream": straight, "prepared": (corpus / "prepared", seen)}


@pytest.fixture
def together(corpus, tmp_path) -> Path:
    """Where several processes run, with a corpus and a broken one."""
    shutil.copytree(corpus / "texts", tmp_path / "texts")
    shutil.copy(corpus / "tokenizer.json", tmp_path)
    (tmp_path / "broken").mkdir()
    copy_broken(corpus, tmp_path / "broken", line=10)
    return tmp_path


def results(folder: Path, count: int) -> list[dict]:
    run_together(__file__, count, folder)
    return [json.loads((folder / f"{i}.json").read_text()) for i in range(count)]


def assert_as_alone(found: list[dict], folder: Path, alone: dict[str, tuple[Path, list[str]]]) -> None:
    for road, (workdir, wanted) in alone.items():
        shared = [of_one[road] for of_one in found]
        assert all(len(seen) == len(shared[0]) for seen in shared)
        assert sorted(itertools.chain(*shared)) == sorted(wanted)
        got, expected = losses(folder / road), losses(workdir)
        assert got.keys() == expected.keys()
        np.testing.assert_allclose(list(got.values()), [expected[key] for key in got], rtol=2e-6)


def test_four_processes_get_the_batches_of_one(together, straight):
    assert_as_alone(results(together, 4), together, {"stream": straight})


def test_two_processes_stop_together(together, alone):
    """Where one can read no more, or is asked to stop; otherwise they do as one does."""
    found = results(together, 2)
    assert_as_alone(found, together, alone)

    (step,) = saved_steps(together / "broken" / "run")
    assert 0 < step < STEPS
    assert ".jsonl:11 is not JSON" in found[1]["broken"]
    assert found[0]["broken"] == (
        f"stopped after step {step} because another process of the run can read its text no more; its log says why"
    )

    stopped = found[0]["stopped"]
    assert found[1]["stopped"] == stopped and 0 < stopped[0] < STEPS and stopped[1] == signal.SIGTERM
    assert [of_one["resumed"] for of_one in found] == [STEPS, STEPS]
    assert losses(together / "stopped") == losses(together / "stream")


def one_process(address: str, count: str, index: str, folder: str) -> None:
    """What each of several processes does."""
    join(address, count, index)
    folder, found = Path(folder), {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        for road in ("stream", "prepared") if count == "2" else ("stream",):
            _, found[road] = run(options(folder, road=road), folder / road, monkeypatch)
        if count == "2":
            found |= stops(index, folder, monkeypatch)
    (folder / f"{index}.json").write_text(json.dumps(found))


def stops(index: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """A run whose source fails in one process, and one of which a process is asked to stop."""
    config, found = options(folder / "broken"), {}
    config["checkpoint"]["every"] = 100
    try:
        run(config, folder / "broken" / "run", monkeypatch)
    except InputError as error:
        found["broken"] = str(error)
    stop = lambda call: os.kill(os.getpid(), signal.SIGTERM) if (call, index) == (6, "1") else None
    outcome, _ = run(options(folder), folder / "stopped", monkeypatch, stop)
    found["stopped"] = [outcome.step, outcome.signal]
    if index == "1":  # as on another machine, where the files were written at another time
        monkeypatch.setattr(Source, "fingerprint", lambda _: "another")
    outcome, _ = run(options(folder), folder / "stopped", monkeypatch)
    return found | {"resumed": outcome.step}


if __name__ == "__main__":
    one_process(*sys.argv[1:])

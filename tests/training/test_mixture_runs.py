"""Runs over a mixture of prompts with completions and plain documents, with all options, by one process and by two."""

import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import join, run_together
from short_runs import use_devices, watch_batches

from gpt2_jax import InputError
from gpt2_jax.config import DataConfig
from gpt2_jax.data import corpus
from gpt2_jax.data.prepare import prepare
from gpt2_jax.data.prepared import load_prepared
from gpt2_jax.training import loop
from gpt2_jax.training import run as parts

NAMES = ("poems", "tales")
OPTIONS = {
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32, "vocab_size": 0},
    "data": {
        "source": "poems=3, tales=1", "reweigh": "4: poems=1, tales=1", "mask_documents": True,
        "restart_positions": True,
    },
    "optimizer": {"learning_rate": 1e-2, "final_learning_rate": 1e-3, "warmup_steps": 2},
    "training": {"steps": 6, "batch_size": 8, "log_every": 1, "sample_tokens": 0},
    "evaluation": {"every": 3},
    "checkpoint": {"every": 3},
}  # fmt: skip


def run(folder: Path, workdir: Path, monkeypatch) -> list[str]:
    """Trains on the corpora in `folder`; returns what each device got: entry, first row, hash."""
    seen, plain = [], loop.global_batch

    def watched(batch, mesh):
        whole = plain(batch, mesh)
        for name, rows in whole.items():
            for shard in rows.addressable_shards:
                digest = hashlib.sha256(np.asarray(shard.data).tobytes()).hexdigest()
                seen.append(f"{name} {shard.index[0].start or 0} {digest}")
        return whole

    monkeypatch.setattr(
        corpus, "prepare_together", lambda *_, **__: {name: load_prepared(folder / name) for name in NAMES}
    )
    use_devices(monkeypatch, jax.devices()[:2])
    watch_batches(monkeypatch, watched)
    loop.train(OPTIONS, workdir)
    return seen


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> dict[tuple[int, str], float]:
    return {(line["step"], key): value for line in lines(workdir) for key, value in line.items() if "loss" in key}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpora")
    poems = [{"prompt": f"poem {i}: ", "text": "red " * (i % 5 + 1) + "rose"} for i in range(100)]
    tales = [{"text": f"tale {i}: once upon a time a red poem " + "there was " * (i % 3)} for i in range(60)]
    tokenizer = "characters"
    for name, records, options in (("tales", tales, {}), ("poems", poems, {"prompt_key": "prompt"})):
        file = folder / f"{name}.jsonl"
        file.write_text("\n".join(map(json.dumps, records)))
        config = DataConfig(
            source="files", paths=str(file), tokenizer=tokenizer, validation_fraction=0.2, workers=1, **options
        )
        prepare(config, folder / name, progress=lambda _: None)
        tokenizer = str(folder / "tales" / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def alone(corpora) -> list[str]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run(corpora, corpora / "alone", monkeypatch)


def test_each_source_is_validated(corpora, alone):
    evaluations = [line for line in lines(corpora / "alone") if "val_loss" in line]
    assert [line["step"] for line in evaluations] == [0, 3, 6]
    learnt = {}
    for name in NAMES:
        prepared = load_prepared(corpora / name)
        bits = prepared.learnt("validation")
        tokens = prepared.tokens("validation")
        flags = [np.ones(len(t)) for t in tokens] if bits is None else [np.unpackbits(b) for b in bits]
        learnt[name] = sum(int(f[: len(t)].sum()) for f, t in zip(flags, tokens)) - int(flags[0][0])
    assert learnt["poems"] < load_prepared(corpora / "poems").count("validation") - 100
    for line in evaluations:
        nats = sum(line[f"val_loss/{name}"] * learnt[name] for name in NAMES)
        assert line["val_loss"] == pytest.approx(nats / sum(learnt.values()), rel=1e-6)
    assert evaluations[-1]["val_loss"] < evaluations[0]["val_loss"]
    assert {entry.split()[0] for entry in alone} == {"tokens", "mask", "segments", "positions"}


def test_a_run_that_died_goes_on_with_the_same_batches(corpora, alone, tmp_path, monkeypatch):
    report, calls = loop.report, iter(range(1000))

    def dying(done, *rest):
        if done.step == 5 and next(calls) == 0:
            raise MemoryError
        return report(done, *rest)

    monkeypatch.setattr(loop, "report", dying)
    with pytest.raises(MemoryError):
        run(corpora, tmp_path / "run", monkeypatch)
    run(corpora, tmp_path / "run", monkeypatch)
    assert losses(tmp_path / "run") == losses(corpora / "alone")


def test_nothing_learnt_in_the_validation_windows(corpora, tmp_path, monkeypatch):
    evaluation_batches = parts.dataset.evaluation_batches
    monkeypatch.setattr(
        parts.dataset,
        "evaluation_batches",
        lambda *args, **options: (b | {"mask": b["mask"] & False} for b in evaluation_batches(*args, **options)),
    )
    with pytest.raises(
        InputError,
        match=r"the validation windows of poems hold prompts alone, of which nothing is learnt; raise"
        r" --config\.evaluation\.windows \(0\) or --config\.data\.validation_fraction",
    ):
        run(corpora, tmp_path / "run", monkeypatch)


def test_two_processes_train_on_the_batches_of_one(corpora, alone, tmp_path):
    (tmp_path / "corpora").symlink_to(corpora)
    run_together(__file__, 2, tmp_path)
    shared = [json.loads((tmp_path / f"seen-{i}.json").read_text()) for i in range(2)]
    assert len(shared[0]) == len(shared[1]) and sorted(shared[0] + shared[1]) == sorted(alone)
    got, wanted = losses(tmp_path / "run"), losses(corpora / "alone")
    assert got.keys() == wanted.keys()
    np.testing.assert_allclose(list(got.values()), [wanted[key] for key in got], rtol=1e-6)


def one_process(address: str, count: str, index: str, folder: str) -> None:
    """What each of several processes does."""
    join(address, count, index)
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen = run(Path(folder) / "corpora", Path(folder) / "run", monkeypatch)
    (Path(folder) / f"seen-{index}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    one_process(*sys.argv[1:])

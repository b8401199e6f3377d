import contextlib
import ctypes
import json
import os
import queue
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest
from short_runs import use_devices, watch_batches

import gpt2_jax
from gpt2_jax import InputError
from gpt2_jax.training import interruption, loop
from gpt2_jax.training.checkpoint import Checkpoints
from gpt2_jax.training.watchdog import exit_code

TEXT = "it was the best of times, it was the worst of times; " * 60


def options(tmp_path, steps=12, **groups):
    """A run of seconds: characters, one layer, batches of 8 on a mesh of 8 devices."""
    file = tmp_path / "corpus.txt"
    if not file.exists():
        file.write_text(TEXT)
    config = {
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 0, "resid_pdrop": 0.1},
        "data": {"source": "files", "paths": str(file), "tokenizer": "characters", "validation_fraction": 0.2},
        "optimizer": {"learning_rate": 1e-2, "final_learning_rate": 1e-3, "warmup_steps": 2},
        "training": {"steps": steps, "batch_size": 8, "log_every": 1, "sample_tokens": 0},
        "evaluation": {"every": 4},
        "checkpoint": {"every": 4, "keep": 2},
    }
    return {name: group | groups.get(name, {}) for name, group in (config | {"mesh": {}}).items()}


def curve(workdir):
    """{(step, name): loss} of all lines of a run; a step written twice would be an error."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    points = [
        ((line["step"], name), line[name]) for line in lines for name in ("train_loss", "val_loss") if name in line
    ]
    assert len(points) == len(dict(points))
    return dict(points)


def parameters(workdir):
    return jax.tree.leaves(gpt2_jax.load(workdir).model)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 12 steps that nothing interrupts, with samples."""
    folder = tmp_path_factory.mktemp("straight")
    outcome = loop.train(
        options(folder, training={"steps": 12, "sample_tokens": 5, "batch_size": 8, "log_every": 1}), folder / "run"
    )
    assert outcome.step == 12 and outcome.signal is None
    return folder / "run"


def test_a_run_leaves_everything_behind(straight):
    lines = [json.loads(line) for line in (straight / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if "train_loss" in line]
    assert [line["step"] for line in train] == list(range(1, 13))
    assert set(train[0]) == {
        "step",
        "train_loss",
        "grad_norm",
        "learning_rate",
        "skipped_steps",
        "rollbacks",
        "tokens_per_second",
        "step_seconds",
        "data_wait",
        "dispatch",
        "device_wait",
    }
    for line in train:
        assert 0 < line["data_wait"] + line["dispatch"] + line["device_wait"] <= 1
    val = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in val] == [0, 4, 8, 12]
    for line in val:
        assert line["val_perplexity"] == pytest.approx(np.exp(line["val_loss"]))
        # One character is one byte and one token, but for the end-of-text.
        assert line["val_bits_per_byte"] == pytest.approx(line["val_loss"] / np.log(2), rel=0.01)
    assert val[-1]["val_loss"] < val[0]["val_loss"] - 0.3
    assert [line["step"] for line in lines if "sample" in line] == [0, 12]

    assert (straight / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    assert list((straight / "tensorboard").glob("events.*"))
    assert json.loads((straight / "config.json").read_text())["model"]["n_layer"] == 1
    log = (straight / "train.log").read_text()
    assert "h.attn.c_attn.kernel" in log and "mfu: not reported" in log
    with Checkpoints(straight) as checkpoints:
        assert checkpoints.steps[-2:] == [8, 12]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, straight, monkeypatch, number, capfd):
    steps = iter(range(100))
    plain = loop.global_batch

    def interrupting(batch, mesh):
        if batch["tokens"].shape[0] == 8 and batch["mask"].all() and next(steps) == 6:
            os.kill(os.getpid(), number)
        return plain(batch, mesh)

    watch_batches(monkeypatch, interrupting)
    config = options(tmp_path)
    config["data"]["paths"] = str(straight.parent / "corpus.txt")
    outcome = loop.train(config, tmp_path / "run")
    assert outcome.signal == number and 0 < outcome.step < 12
    assert "stopping after this step and saving" in capfd.readouterr().out
    watch_batches(monkeypatch, plain)
    assert loop.train(config, tmp_path / "run").step == 12
    assert f"resumed from step {outcome.step} " in capfd.readouterr().out
    assert curve(tmp_path / "run") == curve(straight)
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path / "run"), parameters(straight))


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch):
    def interrupting(batch, mesh):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    watch_batches(monkeypatch, interrupting)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        loop.train(options(tmp_path), tmp_path / "run")
    assert exit_code(stopped.value) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is handler and signal.set_wakeup_fd(-1) == -1


def test_a_second_signal_ends_a_process_that_waits_for_its_devices(monkeypatch):
    """Python's handlers do not run while the main thread is in C++."""
    monkeypatch.setattr(interruption, "DEAF", 0.2)
    ended = queue.Queue()
    monkeypatch.setattr(interruption.os, "_exit", ended.put)
    c, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    c.pthread_mutex_lock(mutex)

    def signals():
        for number in (signal.SIGTERM, signal.SIGINT):
            time.sleep(0.3)
            os.kill(os.getpid(), number)
        with contextlib.suppress(queue.Empty):
            ended.put(ended.get(timeout=10))
        c.pthread_mutex_unlock(mutex)

    threading.Thread(target=signals).start()
    with pytest.raises(KeyboardInterrupt), interruption.stop_signals():
        c.pthread_mutex_lock(mutex)
    assert ended.get_nowait() == 128 + signal.SIGINT


def test_a_finished_run_has_nothing_left_to_do(straight):
    before = curve(straight)
    config = options(straight.parent)
    assert loop.train(config, straight).step == 12
    assert curve(straight) == before


def test_another_config_is_refused_and_nothing_changes(straight):
    before = sorted(str(p) for p in straight.rglob("*")), curve(straight)
    with pytest.raises(
        InputError, match=r"is of another config: model.n_embd \(16 there, 32 here\). Nothing was changed"
    ):
        loop.train(
            options(straight.parent, model={"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 16}), straight
        )
    assert (sorted(str(p) for p in straight.rglob("*")), curve(straight)) == before
    with pytest.raises(InputError, match="holds tokens of another corpus"):
        loop.train(options(straight.parent, data={"split": "tail"}), straight)
    assert curve(straight) == before[1]


def test_a_context_longer_than_the_corpus(tmp_path):
    (tmp_path / "corpus.txt").write_text("short text")
    with pytest.raises(InputError, match="the training split has 8 tokens"):
        loop.train(options(tmp_path), tmp_path / "run")


def test_a_batch_that_the_mesh_cannot_share(tmp_path):
    with pytest.raises(InputError, match=r"is 6 sequences, which 8 devices .* cannot share; use a multiple of 8"):
        loop.train(options(tmp_path, training={"batch_size": 6}), tmp_path / "run")


def test_a_vocabulary_smaller_than_the_tokenizer(tmp_path):
    with pytest.raises(InputError, match=r"model\.vocab_size is 5 and the tokenizer has"):
        loop.train(options(tmp_path, model={"vocab_size": 5, "n_positions": 16}), tmp_path / "run")


@pytest.mark.parametrize(
    ("every", "message"),
    [(4, r"the (loss|gradient norm) of step \d+ is (nan|inf)"), (1, r"the validation loss of step 13 is (nan|inf)")],
)
def test_what_is_not_finite_stops_and_is_not_saved(tmp_path, straight, every, message):
    """With a checkpoint at each step, the first broken parameters would replace the last good ones."""
    shutil.copytree(straight, tmp_path / "run")
    wild = {"learning_rate": 1e30, "final_learning_rate": 1e30, "clip_norm": 0.0, "schedule": "constant"}
    config = options(straight.parent, training={"steps": 20, "batch_size": 8, "log_every": 1}, optimizer=wild,
                     checkpoint={"every": every}) | {"guard": {"skips": 0}}  # fmt: skip
    with pytest.raises(InputError, match=message + r"; the checkpoints from before it are untouched: run again with a"
                                                   r" lower optimizer.learning_rate \(1e\+30\)"):  # fmt: skip
        loop.train(config, tmp_path / "run")
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps[-1] == 12
    jax.tree.map(np.testing.assert_array_equal, parameters(tmp_path / "run"), parameters(straight))
    assert np.isfinite(list(curve(tmp_path / "run").values())).all()


def test_a_run_that_died_before_its_first_checkpoint_starts_anew(tmp_path, straight, monkeypatch):
    calls = iter(range(100))
    plain = loop.global_batch

    def dying(batch, mesh):
        if next(calls) == 12:
            raise RuntimeError
        return plain(batch, mesh)

    config = options(straight.parent)
    watch_batches(monkeypatch, dying)
    with pytest.raises(RuntimeError):
        loop.train(config | {"checkpoint": {"every": 0}}, tmp_path / "run")
    assert {step for step, _ in curve(tmp_path / "run")} >= {0, 1, 2}
    watch_batches(monkeypatch, plain)
    loop.train(config, tmp_path / "run")
    assert curve(tmp_path / "run") == curve(straight)


@pytest.mark.parametrize(
    "mesh",
    [{"data": 1, "fsdp": 8}, {"data": 1, "fsdp": 2, "model": 2, "sequence": 2}, None],
    ids=["fsdp", "all", "one"],
)
def test_a_run_goes_on_on_another_mesh(tmp_path, straight, monkeypatch, mesh):
    shutil.copytree(straight, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")  # so it goes on from step 8
    if mesh is None:
        use_devices(monkeypatch, jax.devices()[:1])
    config = options(straight.parent, mesh=mesh or {})
    assert loop.train(config, tmp_path / "run").step == 12
    now, then = curve(tmp_path / "run"), curve(straight)
    assert now.keys() == then.keys() and {k: v for k, v in now.items() if k[0] <= 8} == {
        k: v for k, v in then.items() if k[0] <= 8
    }
    np.testing.assert_allclose(list(now.values()), list(then.values()), rtol=0, atol=2e-6)
    for mine, other in zip(parameters(tmp_path / "run"), parameters(straight), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-2 / 1000)  # Adam: as in test_processes.py

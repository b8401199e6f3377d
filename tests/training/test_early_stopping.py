"""When a run ends early, what it keeps, and that it does so again after a stop in between."""

import dataclasses
import json
import os
import signal

import jax
import pytest
from short_runs import use_devices, watch_batches

from gpt2_jax import InputError
from gpt2_jax.config import Config
from gpt2_jax.training import loop
from gpt2_jax.training.checkpoint import Checkpoints
from gpt2_jax.training.early_stopping import EarlyStopping
from gpt2_jax.training.run import Run

TEXT = "it was the best of times, it was the worst of times; " * 30
LOSSES = {0: 3.0, 2: 2.5, 4: 2.75, 6: 2.6, 8: 2.4}  # of a run with validation after every second step


def told(patience, *rows):
    """An `EarlyStopping` that has seen (step, training loss, validation loss)s, and what it answered."""
    stopping, answers = EarlyStopping(patience), []
    for step, train_loss, val_loss in rows:
        stopping.train(train_loss)
        answers.append(stopping.evaluate(step, val_loss))
    return stopping, answers


def test_it_stops_after_so_many_evaluations_that_are_no_better():
    stopping, answers = told(2, (0, 5.0, 3.0), (2, 4.0, 2.0), (4, 3.0, 2.5))
    assert [lowest for lowest, _ in answers] == [True, True, False] and not stopping.stops
    assert not stopping.evaluate(6, 2.1)[0]
    assert stopping.stops and (stopping.best_step, stopping.best_loss) == (2, 2.0)
    assert stopping.why == (
        "stopped: the validation loss has not fallen for 2 evaluations (evaluation.patience is 2); the best, 2.0000, "
        "is that of step 2. To train on, raise evaluation.patience"
    )
    assert not dataclasses.replace(stopping, patience=3).stops


def test_of_equal_losses_the_last_is_the_best_but_none_has_fallen():
    stopping, answers = told(2, (2, 4.0, 2.0), (4, 3.0, 2.0), (6, 2.0, 2.0))
    assert [lowest for lowest, _ in answers] == [True, True, True]
    assert stopping.stops and stopping.best_step == 6


def test_overfitting_is_told_when_the_two_losses_part():
    _, answers = told(9, (2, 3.0, 2.0), (4, 2.5, 1.9), (6, 2.0, 2.2), (8, 2.1, 2.3), (10, 1.5, 2.1))
    assert [line != "" for _, line in answers] == [False, False, True, False, False]
    assert answers[2][1] == (
        "step      6  overfitting: the validation loss rose from 1.9000 to 2.2000 while the training loss fell from "
        "2.5000 to 2.0000; the best is that of step 4"
    )


def test_a_step_that_was_skipped_does_not_count():
    stopping = EarlyStopping(1)
    for loss in (1.0, float("nan"), float("inf"), 3.0):
        stopping.train(loss)
    stopping.evaluate(4, 2.0)
    assert stopping.train_loss == 2.0


def test_without_patience_nothing_is_kept():
    stopping, answers = told(0, (2, 3.0, 2.0), (4, 2.0, 9.0))
    assert stopping == EarlyStopping(0) and stopping.saved() is None and set(answers) == {(False, "")}
    assert EarlyStopping.of(0, {"anything": 1}) == stopping


def test_what_is_saved_goes_on():
    stopping, _ = told(2, (2, 3.0, 2.0), (4, 2.0, 9.0))
    stopping.train(0.1)
    saved = json.loads(json.dumps(stopping.saved()))
    assert EarlyStopping.of(2, saved) == stopping
    assert EarlyStopping.of(1, saved).stops and not EarlyStopping.of(2, saved).stops
    for name, value in (
        ("worse", 1.5),
        ("sum", None),
        ("worse", None),
        ("best_step", "2"),
        ("train_loss", 1),
        ("stranger", 1),
    ):
        with pytest.raises(InputError, match=r"the checkpoint has the evaluations .* use another checkpoint, or"):
            EarlyStopping.of(2, saved | {name: value})


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"evaluation": {"patience": -1}}, r"evaluation.patience is -1; it must be 0 \(off\) or more"),
        ({"evaluation": {"patience": 2, "every": 0}}, "evaluation.every is 0; it must be 1 or more with evaluation.pa"),
        ({"evaluation": {"patience": 2}, "checkpoint": {"keep_best": 0}}, "checkpoint.keep_best is 0; it must be 1 or"),
    ],
)
def test_options_that_do_not_go_together(groups, message):
    with pytest.raises(InputError, match=message):
        Config.from_dict(groups)


def options(folder, patience=2):
    file = folder / "corpus.txt"
    if not file.exists():
        file.write_text(TEXT)
    return {
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 0},
        "data": {"source": "files", "paths": str(file), "tokenizer": "characters", "validation_fraction": 0.2},
        "optimizer": {"warmup_steps": 0},
        "training": {"steps": 20, "batch_size": 4, "log_every": 1, "sample_tokens": 0},
        "evaluation": {"every": 2, "patience": patience},
        "checkpoint": {"every": 100},
    }


def test_a_run_stops_keeps_the_best_and_does_not_train_on(tmp_path, monkeypatch, capfd):
    """Stopped by a signal after step 3, gone on, started once more, and with more patience: as if it never had been."""
    use_devices(monkeypatch, jax.devices()[:1])
    monkeypatch.setattr(Run, "validate", lambda self, state, writer: LOSSES[int(state.step)])
    plain, steps = loop.global_batch, iter(range(100))

    def interrupting(batch, mesh):
        if next(steps) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(batch, mesh)

    watch_batches(monkeypatch, interrupting)
    stopped = loop.train(options(tmp_path), tmp_path / "run")
    assert stopped.signal == signal.SIGTERM and stopped.step == 3
    watch_batches(monkeypatch, plain)
    assert loop.train(options(tmp_path), tmp_path / "run") == loop.Outcome(6, None, 2.6, (2, 2.5))
    assert "stopped: the validation loss has not fallen for 2 evaluations" in capfd.readouterr().out
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert {2, 3, 6} <= set(checkpoints.steps) and checkpoints.best == 2
        known = checkpoints.read_evaluations(6)
    losses = [line["train_loss"] for line in lines(tmp_path / "run") if "train_loss" in line]
    assert len(losses) == 6 and known["train_loss"] == sum(losses[4:], 0.0) / 2 and known["worse"] == 2

    assert loop.train(options(tmp_path), tmp_path / "run") == loop.Outcome(6, None, None, (2, 2.5))
    assert "stopped: the validation loss has not fallen for 2 evaluations" in capfd.readouterr().out
    on = options(tmp_path, patience=3)
    on["training"]["steps"] = 8
    assert loop.train(on, tmp_path / "run") == loop.Outcome(8, None, 2.4, (8, 2.4))


def lines(workdir):
    return map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())

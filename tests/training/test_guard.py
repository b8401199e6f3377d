"""Bad numbers, made at chosen steps by a loss that looks at the batch: skipped, jumped over, at last written down."""

import dataclasses
import functools
import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from processes import join, run_together
from short_runs import use_devices

from gpt2_jax import InputError
from gpt2_jax.config import CheckpointConfig, Config, GuardConfig, MeshConfig, TrainingConfig
from gpt2_jax.sharding import global_batch, make_mesh, on_mesh
from gpt2_jax.tokenizer_training import train_characters
from gpt2_jax.training import checkpoint_writer, loop, seal
from gpt2_jax.training import run as parts
from gpt2_jax.training import step as steps
from gpt2_jax.training.checkpoint import Checkpoints, abstract_state
from gpt2_jax.training.checkpoint_writer import CheckpointWriter
from gpt2_jax.training.guard import GuardState, judge, rolled_back
from gpt2_jax.training.program import Program
from gpt2_jax.training.step import init_state

NAN, SPIKE = 0, 1  # the position that such a batch does not count
TEXT = "it was the best of times, it was the worst of times; "


def harm(batch, how):
    mask = np.asarray(batch["mask"]).copy()
    mask[:, how] = False
    return {**batch, "mask": mask}


PLAIN_LOSS = steps.sum_of_losses


def sum_of_losses(model, batch, **options):
    """That of a batch from `harm` is not finite, or a thousand times too large; that of others is as ever."""
    factor = jnp.where(batch["mask"][:, SPIKE].any(), 1.0, 1000.0)
    return PLAIN_LOSS(model, batch, **options) * jnp.where(batch["mask"][:, NAN].any(), factor, jnp.nan)


@pytest.fixture(autouse=True)
def bad_batches(monkeypatch):
    monkeypatch.setattr(steps, "sum_of_losses", sum_of_losses)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(a), jax.tree.leaves(b))


def values_of(guard, values, config, **options):
    """(which of these losses are skipped, what the guard knows after them)."""
    skipped = []
    for step, value in enumerate(values):
        good, guard = judge(guard, jnp.int32(step), jnp.float32(value), jnp.float32(1), config, **options)
        skipped += [] if good else [step]
    return skipped, guard


def test_the_statistics_are_those_of_numpy_and_then_forget():
    values = np.random.default_rng(0).normal(4.0, 0.5, 40)
    for count in (1, 2, 7, 10):
        _, guard = values_of(GuardState.fresh(), values[:count], GuardConfig(window=10, sigmas=100.0))
        np.testing.assert_allclose(guard.mean, [values[:count].mean(), 1], rtol=1e-6)
        np.testing.assert_allclose(guard.variance, [values[:count].var(), 0], rtol=1e-5, atol=1e-7)
    mean, variance = values[:10].mean(), values[:10].var()
    for value in values[10:]:
        away = value - mean
        mean, variance = mean + away / 10, 0.9 * (variance + away**2 / 10)
    _, guard = values_of(GuardState.fresh(), values, GuardConfig(window=10, sigmas=100.0))
    np.testing.assert_allclose([guard.mean[0], guard.variance[0]], [mean, variance], rtol=1e-5)
    assert guard.count == 40


def test_what_is_skipped():
    usual, config = [4.0, 4.2] * 4, GuardConfig(window=8, sigmas=6.0, skips=9)
    skips = lambda values, **options: values_of(GuardState.fresh(), values, config, **options)[0]
    assert skips([*usual, 4.65]) == skips([*usual, 0.0]) == [] and skips([*usual, 4.75]) == [8]
    assert skips([4.0, 4.2, 400.0, 4.1]) == []  # the window is not full
    assert values_of(GuardState.fresh(), [4.0, np.nan, 4.0, 4.0], GuardConfig(skips=1))[0] == [
        1,
        2,
        3,
    ]  # until it goes back
    assert skips([4.0, np.nan, np.inf, 1e30, 4.0]) == [1, 2, 3]  # which needs no window
    assert skips([*usual, 9.0, 9.0], shifts=[8]) == [] and skips([*usual, 9.0, 9.0], shifts=[7]) == []
    _, guard = values_of(GuardState.fresh(), [*usual, np.nan, 50.0], config)
    _, before = values_of(GuardState.fresh(), usual, config)
    equal(guard, before._replace(row=2, skipped=2, missed=2))
    assert before.good == 8 and values_of(GuardState.fresh(), [*usual, np.nan, 4.1], config)[1].row == 0


def test_what_a_roll_back_keeps():
    _, then = values_of(GuardState.fresh(), [4.0, 5.0, np.nan, 4.0], GuardConfig())
    _, now = values_of(then, [np.nan] * 3, GuardConfig())
    after = rolled_back(now, then, 7, 4, False)
    equal(after, then._replace(row=0, skipped=4, rollbacks=1, missed=1 + 3, good=3))
    equal(rolled_back(now, then, 7, 4, True), after._replace(count=0))
    equal(
        rolled_back(now, GuardState.fresh(), 7, 0, False),
        GuardState.fresh()._replace(skipped=4, rollbacks=1, missed=7, good=-1),
    )


BATCHES = [
    {"tokens": np.random.default_rng(i).integers(0, 101, (8, 17)).astype(np.int32), "mask": np.ones((8, 16), bool)}
    for i in range(6)
]


@pytest.fixture(scope="module", params=[MeshConfig(), MeshConfig(2, 2, 2)], ids=["one device", "mesh"])
def run(request, tiny):
    """`run(guard, batches)` -> (losses and gradient norms, last state); on the mesh each batch in two parts."""
    devices = jax.devices() if request.param.model == 2 else jax.devices()[:1]
    mesh = make_mesh(request.param, devices)
    training = TrainingConfig(batch_size=8, sequence_length=16, accumulation_steps=len(devices) // 4 or 1)

    @functools.cache
    def program(guard):
        return Program.of(Config(dataclasses.replace(tiny, n_layer=1), training=training, guard=guard), mesh)

    def run(guard, batches):
        of, curve = program(guard), []
        state = jax.jit(of.init, out_shardings=of.shardings)()
        for batch in batches:
            state, metrics = on_mesh(mesh, of.train_step)(state, global_batch(batch, mesh))
            curve.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        return np.array(curve), state

    return run


WATCHED = GuardConfig(window=2, sigmas=100.0)


def test_the_guard_changes_no_bit_of_a_healthy_run(run):
    on, off = run(WATCHED, BATCHES), run(GuardConfig(skips=0), BATCHES)
    np.testing.assert_array_equal(on[0], off[0])
    equal(on[1]._replace(guard=()), off[1]._replace(guard=()))
    assert on[1].guard.count == 6 and off[1].guard.count == 0 and on[1].guard.skipped == 0


def test_a_skipped_step_leaves_no_trace_but_its_number(run):
    """Not in the moments and the schedule of the optimizer either: as if the batch had never been."""
    bad = [*BATCHES[:4], harm(BATCHES[4], NAN), harm(BATCHES[4], SPIKE), *BATCHES[4:]]
    (curve, state), (without, expected) = run(WATCHED, bad), run(WATCHED, BATCHES)
    assert np.isnan(curve[4]).all() and (curve[5] > 100 * curve[3]).all()
    np.testing.assert_array_equal(np.delete(curve, [4, 5], axis=0), without)
    equal((state.model, state.opt_state), (expected.model, expected.opt_state))
    assert (state.step, state.guard.skipped, state.guard.row, state.guard.good) == (8, 2, 0, 8)


class Harmed:
    """Batches of a run, those of some steps harmed; `at(step)` is called before each."""

    def __init__(self, of, step, harms, at):
        self._of, self._step, self._harms, self._at = of, step, harms, at

    def __next__(self):
        self._step += 1
        self._at(self._step)
        batch = next(self._of)
        return harm(batch, self._harms[self._step]) if self._step in self._harms else batch

    def __getattr__(self, name):
        return getattr(self._of, name)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    train_characters([TEXT]).save(folder / "tokenizer.json")
    for i in range(20):
        (folder / f"{i}.txt").write_text(TEXT * 4 + "its"[i % 3] * (i % 7))
    return folder


@functools.cache
def program_of(config, mesh):
    return Program.of(config, mesh)


class Programs:
    """Those of runs with the same options, to be compiled once."""

    @staticmethod
    def of(config, mesh):
        irrelevant = {
            "checkpoint": CheckpointConfig(),
            "data": dataclasses.replace(config.data, road="prepared"),
            "guard": dataclasses.replace(config.guard, rollbacks=0),
        }
        return program_of(dataclasses.replace(config, **irrelevant), mesh)


def train_harmed(corpus, workdir, harms, at=lambda step: None, *, road="prepared", devices=None, **groups):
    """A run of one layer, the batches of some steps harmed."""
    options = {
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 0, "resid_pdrop": 0.1},
        "data": {
            "source": "files", "paths": str(corpus / "*.txt"), "tokenizer": str(corpus / "tokenizer.json"),
            "validation_fraction": 0.2, "road": road, "prepared": str(corpus / "data"),
        },
        "optimizer": {"learning_rate": 1e-2, "final_learning_rate": 1e-3, "warmup_steps": 2},
        "training": {"steps": 14, "batch_size": 4, "log_every": 1, "sample_tokens": 0},
        "evaluation": {"every": 3, "windows": 4},
        "checkpoint": {"every": 4},
        "guard": {"window": 4, "skips": 2},
        "mesh": {},
    }  # fmt: skip
    options = {name: group | groups.get(name, {}) for name, group in options.items()}
    plain = parts.Run.batches
    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, devices or jax.devices()[:1])
        patch.setattr(parts, "Program", Programs)
        patch.setattr(parts.Run, "batches", lambda self, step, *rest: Harmed(plain(self, step, *rest), step, harms, at))
        return loop.train(options, workdir)


@pytest.fixture
def train(corpus, capfd):
    """`train(workdir, harms, ...)` -> (outcome, what it said)."""

    def train(workdir, harms, *arguments, **options):
        capfd.readouterr()
        return train_harmed(corpus, workdir, harms, *arguments, **options), capfd.readouterr().out

    return train


def lines(workdir, *names):
    """{step: its values of these names} of all lines that have the first; one that is there twice is an error."""
    found = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in found if names[0] in line]
    assert len({line["step"] for line in found}) == len(found)
    return {line["step"]: [line.get(name) for name in names] for line in found}


def arrays(workdir):
    """All arrays of the last checkpoint."""
    with Checkpoints(workdir) as checkpoints:
        folder = workdir / "checkpoints" / str(checkpoints.find())
    with ocp.StandardCheckpointer() as reader:
        return [np.asarray(x) for x in jax.tree.leaves([reader.restore(folder / i) for i in ("model", "training")])]


def assert_equal_runs(workdir, other):
    for names in (["learning_rate", "train_loss", "grad_norm", "skipped_steps", "rollbacks"], ["val_loss"]):
        assert lines(workdir, *names) == lines(other, *names)
    equal(arrays(workdir), arrays(other))


def stop_at(number, signal_number=signal.SIGTERM):
    """As a preemption, or (None) as a process that dies without a word."""

    def at(step):
        if step == number and signal_number is None:
            raise MemoryError
        if step == number:
            os.kill(os.getpid(), signal_number)

    return at


def test_skipped_steps_are_told_and_counted(tmp_path, train):
    outcome, said = train(tmp_path / "run", {3: NAN, 7: SPIKE})
    assert outcome.step == 14 and np.isfinite(outcome.val_loss)
    assert "step      3  skipped, 1 in a row: loss nan, gradient norm nan\n" in said
    assert "step      7  skipped, 1 in a row: loss " in said and " (usually " in said and "rolled back" not in said
    found = lines(tmp_path / "run", "skipped_steps", "rollbacks", "train_loss", "learning_rate")
    assert list(found) == [*range(1, 15)]
    assert [skipped for skipped, *_ in found.values()] == [0] * 2 + [1] * 4 + [2] * 8
    assert found[3][2] is None and found[7][2] > 1000
    assert found[3][3] == found[4][3] and found[4][3] != found[5][3]  # that of the updates, not of the steps

    # Stopped between two skips, and dead after them: as if nothing had been.
    for name, at in (("stopped", stop_at(6)), ("dead", stop_at(8, None))):
        try:
            outcome, _ = train(tmp_path / name, {3: NAN, 7: SPIKE}, at)
            assert outcome.signal == signal.SIGTERM
        except MemoryError:
            assert name == "dead"
        assert train(tmp_path / name, {3: NAN, 7: SPIKE})[0].step == 14
        assert_equal_runs(tmp_path / name, tmp_path / "run")


@pytest.mark.parametrize("road", ["prepared", "stream"])
def test_a_roll_back_jumps_over_the_batches(tmp_path, train, road):
    """Steps 7 and 8 are skipped, 9 runs by the time that this is known; no checkpoint is made of 8."""
    harms = {7: SPIKE, 8: NAN}
    outcome, said = train(tmp_path / "run", harms, road=road)
    assert outcome.step == 14
    assert (
        "step      9  rolled back (1 of 2): it goes on with the parameters and the optimizer of step 4, and with the "
        "text after step 9\n"
    ) in said
    assert said.count("training step traced and compiled") <= 1
    found = lines(tmp_path / "run", "rollbacks", "skipped_steps", "learning_rate")
    assert list(found) == [*range(1, 15)]
    assert [values[:2] for values in found.values()] == [[0, 0]] * 6 + [[0, 1], [0, 2], [0, 3]] + [[1, 3]] * 5
    assert found[10][2] == found[5][2] != found[9][2]
    losses = lines(tmp_path / "run", "val_loss")
    assert losses[9] == losses[4] != losses[6] and losses[12] != losses[9]
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert 8 not in checkpoints.steps and checkpoints.steps[-2:] == [12, 14]

    # Stopped where a row is open, where it is full, and after the roll-back; dead after that, and after a checkpoint.
    ends = {7: signal.SIGTERM, 8: signal.SIGTERM, 10: signal.SIGTERM, 11: None, 13: None}
    for number in [*ends] if road == "prepared" else [10, 13]:
        try:
            train(tmp_path / "again", harms, stop_at(number, ends[number]), road=road)
        except MemoryError:
            assert ends[number] is None
    assert train(tmp_path / "again", harms, road=road)[0].step == 14
    assert_equal_runs(tmp_path / "again", tmp_path / "run")


def test_without_a_checkpoint_it_begins_again_on_other_text(tmp_path, train):
    outcome, said = train(tmp_path / "run", {1: NAN, 2: NAN})
    assert outcome.step == 14 and "it goes on with the initial parameters, and with the text after step 3\n" in said
    losses = lines(tmp_path / "run", "val_loss")
    assert losses[3] == losses[0] and losses[14] < losses[0]
    found = lines(tmp_path / "run", "learning_rate")
    assert found[4] == found[1]


def test_each_roll_back_goes_further_and_then_it_stops(tmp_path, train, capfd):
    harms = dict.fromkeys(range(9, 30), NAN)
    folder = tmp_path / "run" / "bad_numbers" / "step-16"
    message = (
        r"stopped at step 16: 2 steps in a row were skipped, and going back to a checkpoint has been tried 2 times of "
        r"guard.rollbacks \(2\); loss nan \(usually .*\), gradient norm nan \(usually .*\). The batch and all numbers "
        rf"are in {folder}, and the "
        r"checkpoints are untouched: look at that text, then run again with a lower optimizer.learning_rate \(0.01\) "
        r"or a longer optimizer.warmup_steps \(2\), or, if such numbers are nothing unusual, a higher guard.sigmas "
        r"\(10.0\)"
    )
    with pytest.raises(InputError, match=message):
        train(tmp_path / "run", harms, training={"steps": 30}, evaluation={"every": 100})
    said = capfd.readouterr().out
    assert "step     11  rolled back (1 of 2): it goes on with the parameters and the optimizer of step 8," in said
    assert "step     14  rolled back (2 of 2): it goes on with the parameters and the optimizer of step 4," in said
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps == [4, 8]
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["why"] == "2 steps in a row were skipped" and numbers["loss"] == numbers["grad_norm"] == "nan"
    assert (numbers["skipped_steps"], numbers["skipped_in_a_row"], numbers["rollbacks"]) == (8, 2, 2)
    assert numbers["options"] == {"window": 4, "sigmas": 10.0, "skips": 2, "rollbacks": 2}
    assert (
        numbers["usual"]["steps"] == 4 and 0 < numbers["usual"]["loss"]["deviation"] < numbers["usual"]["loss"]["mean"]
    )
    with np.load(folder / "batch.npz") as batch:
        assert batch["tokens"].shape == (4, 17) and not batch["mask"][:, NAN].any() and batch["mask"][:, 2].all()

    # All options of the guard may change.
    with pytest.raises(InputError, match="the loss of step 9 is nan; the checkpoints from before it are untouched"):
        train(tmp_path / "run", harms, training={"steps": 30}, guard={"skips": 0}, evaluation={"every": 100})
    more = {"window": 2, "sigmas": 9.0, "skips": 100, "rollbacks": 0}
    with pytest.raises(InputError, match=r"has been tried 0 times of guard.rollbacks \(0\)"):
        train(tmp_path / "run", harms, training={"steps": 30}, guard={"rollbacks": 0})
    outcome, said = train(tmp_path / "run", harms, training={"steps": 30}, guard=more)
    assert outcome.step == 30 and "step     29  skipped, 21 in a row" in said


def test_a_validation_loss_that_is_not_finite_goes_back_too(tmp_path, train, monkeypatch):
    plain, calls = parts.Run.validate, iter(range(100))
    monkeypatch.setattr(parts.Run, "validate", lambda *of: plain(*of) if next(calls) != 4 else float("nan"))
    outcome, said = train(tmp_path / "run", {})
    assert outcome.step == 14
    assert "step      8  rolled back (1 of 2: the validation loss is nan): it goes on with the parameters" in said
    losses = lines(tmp_path / "run", "val_loss")
    assert losses[8] == losses[4]
    with Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.steps[-1] == 14


def without_the_guard(patch, number):
    """Makes checkpoints such as they were in that format."""
    plain = checkpoint_writer.all_but_model
    patch.setattr(checkpoint_writer, "all_but_model", lambda s: {k: v for k, v in plain(s).items() if k != "guard"})
    patch.setattr(seal, "FORMAT", number)


def test_a_run_from_before_the_guard_goes_on(tmp_path, train, monkeypatch):
    train(tmp_path / "straight", {})
    with monkeypatch.context() as patch:
        without_the_guard(patch, 1)
        train(tmp_path / "run", {}, stop_at(5))
    assert "guard" not in (tmp_path / "run" / "checkpoints" / "5" / "training" / "_METADATA").read_text()
    assert train(tmp_path / "run", {})[0].step == 14
    assert lines(tmp_path / "run", "train_loss") == lines(tmp_path / "straight", "train_loss")


@pytest.mark.parametrize("number", [0, 1])
def test_checkpoints_of_older_formats(tmp_path, small, number, monkeypatch):
    state, shapes = small
    with CheckpointWriter(tmp_path, CheckpointConfig()) as checkpoints, monkeypatch.context() as patch:
        without_the_guard(patch, number)
        checkpoints.save(state._replace(step=jnp.full_like(state.step, 7)), {}, "", None)
        checkpoints.wait()
    if number == 0:
        (tmp_path / "checkpoints" / "7" / seal.MANIFEST).unlink()
    with CheckpointWriter(tmp_path, CheckpointConfig()) as checkpoints:
        restored = checkpoints.restore(checkpoints.find_to_go_on(print), shapes)
    equal(restored, state._replace(step=7, guard=GuardState.fresh(7)))  # from 7 it goes back no further than it must


@pytest.fixture(scope="module")
def small(tiny):
    """(a state on one device without an optimizer, its shapes)."""
    config = dataclasses.replace(tiny, n_layer=1)
    state = jax.jit(functools.partial(init_state, config, optax.identity(), 0))()
    return state, abstract_state(state, jax.tree.map(lambda x: x.sharding, state))


def test_which_checkpoint_is_gone_back_to(tmp_path, small):
    (state, _), told = small, []
    with CheckpointWriter(tmp_path, CheckpointConfig(keep=9)) as checkpoints:
        find = lambda newest, every: checkpoints.find_to_roll_back(newest, every, told.append)
        assert find(9, 4) is None
        for step in (4, 8, 9):
            checkpoints.save(state._replace(step=jnp.full_like(state.step, step)), {}, "", None)
        checkpoints.wait()
        assert (find(10, 4), find(10, 0), find(7, 4), find(3, 4), find(10, 9), find(10, 5)) == (8, 9, 4, 4, 9, 9)
        (tmp_path / "checkpoints" / "8" / seal.MANIFEST).unlink()
        assert find(10, 4) == 4
        assert told[0].startswith(
            f"the checkpoint of step 8 in {tmp_path / 'checkpoints'} is damaged (manifest.json is"
        )
        for step in (4, 9):
            (tmp_path / "checkpoints" / str(step) / seal.MANIFEST).unlink()
        with pytest.raises(InputError, match="has no checkpoint to go back to that is not damaged: bring back a copy"):
            find(10, 4)


HARMS = {7: SPIKE, 8: NAN, **dict.fromkeys(range(10, 15), NAN)}


def test_several_processes_decide_alike(tmp_path, corpus):
    """They go back, and stop, and write down the whole batch that only parts of were theirs."""
    (tmp_path / "corpus").symlink_to(corpus)
    run_together(__file__, 2, tmp_path)
    found = lines(tmp_path / "run", "skipped_steps", "rollbacks")
    assert list(found.values()) == [[0, 0]] * 6 + [[1, 0], [2, 0], [3, 0], [4, 1], [5, 1]]
    assert lines(tmp_path / "run", "val_loss")[9] == lines(tmp_path / "run", "val_loss")[4]
    with np.load(tmp_path / "run" / "bad_numbers" / "step-11" / "batch.npz") as batch:
        assert batch["tokens"].shape == (4, 17) and batch["tokens"].any(axis=1).all()
        assert not batch["mask"][:, NAN].any() and batch["mask"][:, 1:].all()


def one_process(address, count, index, folder):
    """What each of several processes does."""
    join(address, count, index)
    steps.sum_of_losses = sum_of_losses
    corpus = (Path(folder) / "corpus").resolve()
    with pytest.raises(InputError, match="stopped at step 11"):
        train_harmed(
            corpus,
            Path(folder) / "run",
            HARMS,
            devices=jax.devices(),
            mesh={"fsdp": 2, "data": 1},
            guard={"rollbacks": 1},
        )


if __name__ == "__main__":
    one_process(*sys.argv[1:])

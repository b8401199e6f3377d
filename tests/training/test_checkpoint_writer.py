import json
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orbax.checkpoint.checkpoint_managers import PreservationContext
from saved_states import CONFIG, at, files_of, flip_a_bit, save

from gpt2_jax import InputError
from gpt2_jax.config import CheckpointConfig
from gpt2_jax.training import checkpoint_writer, seal
from gpt2_jax.training.checkpoint import Checkpoints
from gpt2_jax.training.checkpoint_writer import CheckpointWriter, _policy


def test_the_newest_and_the_best_are_kept(tmp_path, state):
    losses = [(1, 5.0), (2, 1.0), (3, 3.0), (4, 4.0), (5, None)]
    with CheckpointWriter(tmp_path, CheckpointConfig(keep=2, keep_best=1)) as checkpoints:
        save(checkpoints, state, losses)
        assert checkpoints.steps == [2, 4, 5]
        assert checkpoints.find("best") == 2 and checkpoints.find() == 5 and checkpoints.find(4) == 4
        save(checkpoints, state, [(5, None)])  # once more: nothing to do
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps == [2, 4, 5] and checkpoints.find("best") == 2


def test_keeping_only_the_newest(tmp_path, state):
    with CheckpointWriter(tmp_path, CheckpointConfig(keep_best=0)) as checkpoints:
        save(checkpoints, state, [(1, 1.0), (2, 2.0), (3, 3.0)])
        assert checkpoints.steps == [2, 3]


def test_some_stay_for_good(tmp_path, state):
    with CheckpointWriter(tmp_path, CheckpointConfig(every=2, keep_every=4, keep_best=0)) as checkpoints:
        save(checkpoints, state, [(step, 1.0) for step in (2, 4, 5, 6, 8, 10, 12, 13)])
        assert checkpoints.steps == [4, 8, 10, 12, 13]  # two for good, two that were due, the two newest
    with pytest.raises(InputError, match=r"checkpoint.keep_every is 5; it must be 0 \(none\) or a multiple of .*every"):
        CheckpointConfig(every=2, keep_every=5)


@given(
    st.lists(st.none() | st.floats(0, 10), min_size=1, max_size=30),
    st.integers(2, 4), st.integers(0, 3), st.sampled_from([0, 2, 6]),
)  # fmt: skip
def test_what_is_deleted_is_never_needed(losses, keep, keep_best, keep_every):
    """Of saves with these losses, one after another: the newest, the best and the permanent ones are always there."""
    rule = _policy(CheckpointConfig(every=1, keep=keep, keep_best=keep_best, keep_every=keep_every))
    there = []
    for step, loss in enumerate(losses, 1):
        there.append(SimpleNamespace(step=step, time=None, metrics=None if loss is None else {"val_loss": loss}))
        keeps = rule.should_preserve(there, context=PreservationContext())
        there = [info for info, keep in zip(there, keeps, strict=True) if keep]
        steps = {info.step for info in there}
        assert steps >= set(range(max(1, step - keep + 1), step + 1))
        assert steps >= {s for s in range(1, step + 1) if keep_every and s % keep_every == 0}
        known = sorted(loss for loss in losses[:step] if loss is not None)[:keep_best]
        assert sorted(losses[s - 1] for s in steps if losses[s - 1] is not None)[: len(known)] == known


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("harm", [truncate, flip_a_bit, lambda path: path.unlink()], ids=["truncated", "bit", "gone"])
def test_a_harmed_file_is_named_and_the_checkpoint_before_it_used(tmp_path, two, harm):
    """Each file of a checkpoint in turn, but for those of Orbax that say nothing of the state."""
    files = [name for name in files_of(two, 2) if name != seal.NAMED and not name.startswith("metrics/")]
    assert len(files) > 10 and {name.split("/")[0] for name in files} >= {"model", "training", "config", "tokenizer"}
    for i, name in enumerate(files):
        if name in (seal.METADATA, seal.MANIFEST) and harm is flip_a_bit:
            continue  # most of their bits say nothing that is used
        workdir = tmp_path / str(i)
        shutil.copytree(two, workdir)
        harm(workdir / "checkpoints" / "2" / name)
        told = []
        with CheckpointWriter(workdir, CheckpointConfig()) as checkpoints:
            assert checkpoints.find_to_go_on(told.append) == 1
            assert checkpoints.steps == [1]
        assert "the checkpoint of step 2" in told[0] and f"is damaged ({name} " in told[0], name
        assert told[1] == f"it is now in {workdir / 'damaged' / '2'}; going on from step 1"
        assert files_of(workdir, 1) == files_of(two, 1) and (workdir / "damaged" / "2").is_dir()
        shutil.rmtree(workdir)


def test_nothing_is_changed_where_all_checkpoints_are_damaged(tmp_path, two):
    shutil.copytree(two, tmp_path / "run")
    for step in "12":
        shutil.rmtree(tmp_path / "run" / "checkpoints" / step / "training")
    with CheckpointWriter(tmp_path / "run", CheckpointConfig()) as checkpoints:
        with pytest.raises(InputError, match="not damaged: step 2: training is missing; step 1: training is missing"):
            checkpoints.find_to_go_on(print)
        assert checkpoints.steps == [1, 2]


def test_what_is_not_a_checkpoint_is_passed_over(tmp_path, two):
    shutil.copytree(two, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "7").mkdir()
    with CheckpointWriter(tmp_path / "run", CheckpointConfig()) as checkpoints:
        assert checkpoints.find_to_go_on(print) == 2


def test_a_save_that_is_put_aside_twice(tmp_path, two):
    shutil.copytree(two, tmp_path / "run")
    shutil.copytree(two / "checkpoints" / "2", tmp_path / "run" / "damaged" / "2")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2" / "config")
    with CheckpointWriter(tmp_path / "run", CheckpointConfig()) as checkpoints:
        checkpoints.find_to_go_on(print)
    assert sorted(path.name for path in (tmp_path / "run" / "damaged").iterdir()) == ["2", "2-2"]


def test_a_checkpoint_is_on_disk_before_it_has_its_name(tmp_path, state, monkeypatch):
    """Power may fail at any instant: files and folders are flushed, then the name is given and flushed."""
    events = []
    flush, rename = os.fsync, os.rename
    name = lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (events.append(("flush", name(descriptor))), flush(descriptor)))
    monkeypatch.setattr(
        os, "rename", lambda *paths, **kw: (events.append(("name", str(paths[1]))), rename(*paths, **kw))
    )
    with CheckpointWriter(tmp_path, CheckpointConfig()) as checkpoints:
        save(checkpoints, state, [(1, 1.0)])
    final = str(tmp_path / "checkpoints" / "1")
    named = events.index(("name", final))
    manifest = json.loads((tmp_path / "checkpoints" / "1" / seal.MANIFEST).read_text())
    flushed = {
        path.split("orbax-checkpoint-tmp")[-1].split("/", 1)[-1] for kind, path in events[:named] if kind == "flush"
    }
    assert flushed >= {*manifest["files"], seal.MANIFEST, "model", "training"}
    assert ("flush", str(tmp_path / "checkpoints")) in events[named:]


# A limit on the size of files stands for a full disk: Python ignores the signal, and writes fail. As for a user, what
# failed is opened again by another process: in the same one, threads of the failed save may still be writing.
FULL_DISK = """
import resource, shutil, sys, time
from pathlib import Path
import jax, numpy, optax
from gpt2_jax import GPT2Config, InputError
from gpt2_jax.config import CheckpointConfig
from gpt2_jax.training.checkpoint_writer import CheckpointWriter
from gpt2_jax.training.step import init_state

config = GPT2Config(vocab_size=500, n_positions=8, n_embd=256, n_layer=1, n_head=1)
state = jax.jit(lambda: init_state(config, optax.identity(), 0))()
at = lambda step: state._replace(step=jax.numpy.full_like(state.step, step))
folder = Path(sys.argv[2])

def disk(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def fail(_):
    raise InputError("another failure")

save = lambda step, tokenizer="": lambda checkpoints: checkpoints.save(at(step), {}, tokenizer, 1.0)
wait = lambda checkpoints: checkpoints.wait()
attempts = {
    "wait": (50_000, save(2), wait),
    "next save": (50_000, save(2), lambda _: time.sleep(1), save(3)),
    "end": (50_000, save(2)),
    "end after another failure": (50_000, save(2), fail),
    "json": (10, save(2, "a long tokenizer"), wait),
}
if sys.argv[1] == "fail":
    with CheckpointWriter(folder / "good", CheckpointConfig()) as checkpoints:
        save(1)(checkpoints)
        wait(checkpoints)
    for name, (size, *actions) in attempts.items():
        shutil.copytree(folder / "good", folder / name)
        try:
            with CheckpointWriter(folder / name, CheckpointConfig()) as checkpoints:
                disk(size)
                for action in actions:
                    action(checkpoints)
        except InputError as error:
            print(error)
        disk(resource.RLIM_INFINITY)
elif sys.argv[1] == "survive":
    with CheckpointWriter(folder, CheckpointConfig(on_failure="go_on"), print) as checkpoints:
        save(1)(checkpoints)
        wait(checkpoints)
        disk(50_000)
        save(2)(checkpoints)
        save(3)(checkpoints)
        save(4, "a long tokenizer" * 10_000)(checkpoints)
        time.sleep(5)  # until it has failed, which the next save tells
        disk(resource.RLIM_INFINITY)
        save(5)(checkpoints)
        wait(checkpoints)
        print(checkpoints.steps)
        disk(50_000)
        save(6)(checkpoints)
        try:
            wait(checkpoints)
        except InputError as error:
            print(error)
        disk(resource.RLIM_INFINITY)
else:
    for name in attempts:
        with CheckpointWriter(folder / name, CheckpointConfig()) as checkpoints:
            before = checkpoints.steps
            restored = checkpoints.restore(1, jax.eval_shape(lambda: state))
            jax.tree.map(numpy.testing.assert_array_equal, jax.tree.leaves(restored), jax.tree.leaves(at(1)))
            save(2)(checkpoints)
            wait(checkpoints)
            print(before, checkpoints.steps)
"""


def on_a_full_disk(what, folder):
    command = [sys.executable, "-c", FULL_DISK, what, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip().splitlines()


def test_a_run_may_go_on_without_a_checkpoint(tmp_path):
    *told, steps, end = on_a_full_disk("survive", tmp_path)
    assert len(told) == 3, told
    for step, line in enumerate(told, 2):
        assert line.startswith(f"could not save the checkpoint of step {step} to ")
        assert "File too large; steps 1 are untouched: training goes on, and saves the next that is due" in line
    assert steps == "[1, 5]"
    assert "could not save the checkpoint of step 6 to" in end and "make room and run the same command again" in end


@pytest.mark.parametrize("reason", ["Read-only file system", "Input/output error"])
def test_a_save_that_fails_later_is_surfaced_by_the_next_call(tmp_path, state, monkeypatch, reason):
    """In Orbax's thread, while training goes on: told or raised, with what is kept."""
    told, plain = [], seal.seal

    def fail(folder):
        raise OSError(reason)

    with CheckpointWriter(tmp_path, CheckpointConfig(on_failure="go_on"), told.append) as checkpoints:
        save(checkpoints, state, [(1, 1.0)])
        monkeypatch.setattr(seal, "seal", fail)
        checkpoints.save(at(state, 2), CONFIG, "", 2.0)
        time.sleep(1)
        monkeypatch.setattr(seal, "seal", plain)
        save(checkpoints, state, [(3, 3.0)])
        assert checkpoints.steps == [1, 3] and len(told) == 1
        kept = f"could not save the checkpoint of step 2 to {checkpoints.directory}: {reason.split()[0]}"
        assert told[0].startswith(kept) and "steps 1 are untouched: training goes on" in told[0]
    monkeypatch.setattr(seal, "seal", fail)
    raised = pytest.raises(InputError, match=r"step 4 to .*; steps 1, 3 are untouched: make room")
    with raised, CheckpointWriter(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(at(state, 4), CONFIG, "", 4.0)
        checkpoints.wait()


def test_a_slow_disk_is_told_of(tmp_path, state, monkeypatch):
    plain, told = seal.seal, []
    monkeypatch.setattr(seal, "seal", lambda folder: (time.sleep(0.5), plain(folder)))
    monkeypatch.setattr(checkpoint_writer, "SLOW", 0.1)
    with CheckpointWriter(tmp_path, CheckpointConfig(), told.append) as checkpoints:
        save(checkpoints, state, [(1, 1.0)])
        save(checkpoints, state, [(2, 1.0), (3, 1.0)])
    assert len(told) == 1 and told[0].startswith("the checkpoint of step 3 waited ")
    assert told[0].endswith("for the one before it to be written: the disk is slow for a checkpoint.every of 500")


def test_a_full_disk_is_named_and_costs_nothing(tmp_path):
    messages = on_a_full_disk("fail", tmp_path)
    assert len(messages) == 5
    for message in messages:
        assert message.startswith("could not save the checkpoint of step 2 to ")
        assert "File too large; steps 1 are untouched: make room and run the same command again" in message
    assert on_a_full_disk("go on", tmp_path) == ["[1] [1, 2]"] * 5

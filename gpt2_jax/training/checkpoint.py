"""Checkpoints of a run: Orbax, asynchronous, atomic, sealed by checksums; the newest and the best are kept.

`<workdir>/checkpoints/<step>/` holds four items: `model` (parameters), `training` (step, optimizer state, key, what
the guard knows), `config` and `tokenizer` (JSON), so that one checkpoint is enough to generate or to go on; of a run on
streamed text a fifth, `stream` (JSON), says where the next batch comes from (`Corpus.saved`), and of one with
`evaluation.patience` another, `evaluations`, what its validation losses were (`EarlyStopping`). Of a run with adapters
`model` holds what is trained alone, and `base` (JSON) says which model that belongs to (adapted.py). `manifest.json`
has the checksums of all files (see seal.py), and is compared with them before anything is read.
"""

import contextlib
import functools
import itertools
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from gpt2_jax import json_files
from gpt2_jax.config import CheckpointConfig
from gpt2_jax.errors import InputError, one_line, shown
from gpt2_jax.model import GPT2
from gpt2_jax.training import seal
from gpt2_jax.training.guard import GuardState
from gpt2_jax.training.step import TrainState

METRICS = "metrics"  # Orbax's item of it
LARGEST_ITEM = 128 << 20  # bytes of JSON; a tokenizer.json as a string is about twice as long
TO_READ = ("model", "config", "tokenizer")  # items that make a language model
TO_GO_ON = (*TO_READ, "training")
NOTHING, ALL_DAMAGED = -1, -2  # instead of a step, among processes

DISK_FAILURES = (
    *("No space left", "File too large", "quota exceeded", "Permission denied", "Read-only", "Input/output"),
    *("Stale file handle", "Transport endpoint is not connected", "No such device"),
)
AGAIN = "make room and run the same command again, and it goes on from there"
SLOW = 30.0  # seconds that a save may wait for the one before it without a word


class _Manager(ocp.CheckpointManager):
    """Orbax's, which a damaged file of metrics does not stop: what it says of "best" alone is lost."""

    def metrics(self, step: int) -> dict[str, float] | None:
        found = json_files.find(Path(self.directory) / str(step) / METRICS / METRICS)
        return found if found is not None and type(found.get("val_loss")) is float else None


class Checkpoints:
    """The checkpoints of a workdir; a context manager that waits for the last save."""

    def __init__(
        self,
        workdir: Path,
        config: CheckpointConfig | None = None,
        tell: Callable[[str], None] = logging.warning,
    ):
        """Opens them: to write with `config`, else only to read.

        Args:
          workdir: of a run.
          config: what is kept, and whether a save that fails stops the run.
          tell: is given a line about a save that failed, or that was slow.

        Raises:
          InputError: nothing to read there, or a checkpoint at which Orbax fails.
        """
        self.directory = Path(workdir).absolute() / "checkpoints"
        if config is None and not self.directory.is_dir():
            raise InputError(f"{workdir} holds no checkpoints; give the --workdir of a training run that has saved one")
        self._config, self._tell = config, tell
        self._saving: int | None = None  # the step of the last save
        self._manager = self._open(clean=config is not None)

    def _open(self, *, clean: bool) -> ocp.CheckpointManager:
        config = self._config
        verbosity = logging.get_verbosity()
        if config is None:
            logging.set_verbosity(logging.ERROR)  # Orbax warns that what is opened to read cannot be written
        try:
            return _Manager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=config and _policy(config),
                    best_fn=lambda metrics: metrics["val_loss"],
                    best_mode="min",
                    cleanup_tmp_directories=clean,
                    temporary_path_class=seal.SealedPath,
                    read_only=config is None,
                    create=config is not None,
                ),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            steps = (path for path in sorted(self.directory.iterdir()) if path.name.isdigit())
            named = ", ".join(str(path) for path in steps if seal.damage(path, ())) or "its folder"
            raise InputError(
                f"{self.directory} cannot be opened ({type(error).__name__}: {one_line(error)}); the {seal.METADATA} "
                f"of a checkpoint is damaged: move {named} elsewhere, and the others are read"
            ) from error
        finally:
            logging.set_verbosity(verbosity)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: Any) -> None:
        with self._failures_explained():  # a save still under way fails here
            self._manager.close()

    @property
    def steps(self) -> list[int]:
        """The steps saved, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def best(self) -> int | None:
        """The step with the lowest validation loss, of those that have one."""
        return self._manager.best_step()

    def find(self, step: int | str | None = None, tell: Callable[[str], None] = logging.warning, items=TO_READ) -> int:
        """The saved step that is meant, its checksums compared.

        Args:
          step: a number, also as text, "best" (by validation loss), or None: the newest that is not damaged.
          tell: of those passed over, and what is wrong with them.
          items: that are to be read.

        Raises:
          InputError: there is none such, or it is damaged.
        """
        if step is None:
            if not self.steps:
                raise InputError(f"{self.directory} has no checkpoint yet; it is empty")
            found, damages = self._first_good(reversed(self.steps), items, tell)
            if found is not None:
                return found
            listed = "; ".join(f"step {found}: {what}" for found, what in damages.items())
            raise InputError(
                f"{self.directory} has no checkpoint that is not damaged: {listed}. Nothing was changed: bring back a "
                "copy of one, or train anew in another --workdir"
            )
        if step == "best":
            for other in self.steps:
                if (self.directory / str(other) / METRICS).exists() and self._manager.metrics(other) is None:
                    tell(f"the metrics of step {other} in {self.directory} are damaged: it is not taken for the best")
        found = self.best if step == "best" else int(step) if str(step).isdecimal() else step
        if found not in self.steps:
            there = f"it has {', '.join(map(str, self.steps))}" if self.steps else "it is empty"
            raise InputError(f"{self.directory} has no checkpoint {step}; {there}")
        items = (*items, METRICS) if step == "best" else items
        if what := seal.damage(self.directory / str(found), items):
            others = [other for other in self.steps if other != found]
            advice = f"it also has {', '.join(map(str, others))}" if others else "it is the only one"
            raise InputError(f"the checkpoint of step {found} in {self.directory} is damaged ({what}); {advice}")
        return found

    def find_to_go_on(self, tell: Callable[[str], None]) -> int:
        """The newest step that is not damaged, for all processes of a run; those after it are put aside.

        They go to `<workdir>/damaged`: the run is about to save these steps again.

        Raises:
          InputError: all are damaged.
        """
        found, failure = -1, None
        if jax.process_index() == 0:
            try:
                found = self.find(None, tell, TO_GO_ON)
            except InputError as error:
                failure = error
        found = _of_process_0(found)
        if found < 0:
            raise failure or InputError(f"{self.directory} has no checkpoint that is not damaged, as process 0 tells")
        if bad := [step for step in self.steps if step > found]:
            if jax.process_index() == 0:
                for step in bad:
                    tell(f"it is now in {self._put_aside(step)}; going on from step {found}")
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("damaged checkpoints put aside")
            self._manager.reload()
        return found

    def find_to_roll_back(self, newest: int, every: int, tell: Callable[[str], None]) -> int | None:
        """The newest step up to `newest` that is not damaged, for all processes of a run; None if nothing is saved yet.

        What an interruption saved, between the steps that are saved `every` so many, comes after those: a run that was
        interrupted is to go back as far as one that was not. Where all are newer the oldest has to do.

        Raises:
          InputError: all are damaged.
        """
        before = [step for step in self.steps if step <= newest]
        before.sort(key=lambda step: (every == 0 or step % every == 0, step), reverse=True)
        candidates, found = [*before, *(step for step in self.steps if step > newest)], NOTHING
        if candidates and jax.process_index() == 0:
            good, _ = self._first_good(candidates, TO_GO_ON, tell)
            found = ALL_DAMAGED if good is None else good
        found = _of_process_0(found)
        if found == ALL_DAMAGED:
            raise InputError(
                f"{self.directory} has no checkpoint to go back to that is not damaged: bring back a copy of one, or "
                "train anew in another --workdir"
            )
        return None if found == NOTHING else found

    def _first_good(
        self, steps: Iterable[int], items: Iterable[str], tell: Callable[[str], None]
    ) -> tuple[int | None, dict[int, str]]:
        """(the first of `steps` that is not damaged, what is wrong with those before it, which `tell` is told)."""
        damages = {}
        for step in steps:
            if not (what := seal.damage(self.directory / str(step), items)):
                return step, damages
            tell(f"the checkpoint of step {step} in {self.directory} is damaged ({what})")
            damages[step] = what
        return None, damages

    def _put_aside(self, step: int) -> Path:
        folder = self.directory.parent / "damaged"
        folder.mkdir(exist_ok=True)
        names = (f"{step}{suffix}" for suffix in itertools.chain([""], map("-{}".format, itertools.count(2))))
        aside = next(folder / name for name in names if not (folder / name).exists())
        return (self.directory / str(step)).rename(aside)

    def save(
        self,
        state: TrainState,
        config: dict[str, Any],
        tokenizer: str,
        val_loss: float | None,
        stream: dict[str, Any] | None = None,
        evaluations: dict[str, Any] | None = None,
        base: dict[str, Any] | None = None,
    ) -> None:
        """Starts to write the whole state, and what else there is to know; returns once it is safe to change it.

        Raises:
          InputError: this save or the one before failed (a full disk), and that is to stop the run; the older
            checkpoints are untouched.
        """
        step = int(state.step)
        if step in self.steps:
            return
        began = time.monotonic()
        with self._survived():
            self._manager.wait_until_finished()
        if (waited := time.monotonic() - began) > SLOW:
            self._tell(
                f"the checkpoint of step {step} waited {waited:,.0f} s for the one before it to be written: the disk "
                f"is slow for a checkpoint.every of {self._config.every}"
            )
        items = (("stream", stream), ("evaluations", evaluations), ("base", base))
        more = {name: item for name, item in items if item is not None}
        items = ocp.args.Composite(
            **{name: ocp.args.JsonSave(item) for name, item in more.items()},
            model=ocp.args.StandardSave(state.model),
            training=ocp.args.StandardSave(_all_but_model(state)),
            config=ocp.args.JsonSave(config),
            tokenizer=ocp.args.JsonSave({"tokenizer.json": tokenizer}),
        )
        self._saving = step
        with self._survived():
            metrics = None if val_loss is None else {"val_loss": val_loss}
            marked = {"format": seal.FORMAT}
            self._manager.save(step, args=items, metrics=metrics, force=True, custom_metadata=marked)

    def wait(self) -> None:
        """Returns when all that was saved is on disk; raises like `save`."""
        with self._failures_explained():
            self._manager.wait_until_finished()

    def read_json(self, step: int) -> tuple[dict[str, Any], str]:
        """The config (nested dicts) and the tokenizer (its JSON) saved with a step.

        Raises:
          InputError: they are not what `save` writes.
        """
        tokenizer = self._read_item(step, "tokenizer").get("tokenizer.json")
        if not isinstance(tokenizer, str):
            raise InputError(
                f"the checkpoint of step {step} in {self.directory} has the tokenizer {shown(tokenizer)}, and it must "
                "be the text of a tokenizer.json; use another checkpoint"
            )
        return self._read_item(step, "config"), tokenizer

    def read_stream(self, step: int) -> dict[str, Any]:
        """Where a stream was at that step, see `Corpus.saved`; raises like `read_json`."""
        return self._read_item(step, "stream")

    def read_base(self, step: int) -> dict[str, Any]:
        """Which model the adapters of that step were trained on; raises like `read_json`."""
        return self._read_item(step, "base")

    def read_evaluations(self, step: int) -> dict[str, Any] | None:
        """What the validation losses were up to that step, None if that was not kept; raises like `read_json`."""
        there = (self.directory / str(step) / "evaluations").is_dir()
        return self._read_item(step, "evaluations") if there else None

    def restore_model(self, step: int, abstract: GPT2) -> GPT2:
        """The parameters alone, into the shapes and shardings of `abstract`; raises like `restore`."""
        self._check_shapes(step, abstract)
        return self._restore(step, model=ocp.args.StandardRestore(abstract)).model

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The whole state, bit for bit, into the shapes and shardings of `abstract`.

        In one that was saved before there was a guard, the guard knows nothing.

        Raises:
          InputError: it is not of these shapes, or cannot be read.
        """
        self._check_shapes(step, abstract.model)
        training, new = _all_but_model(abstract), {}
        if seal.format_of(self.directory / str(step)) < 2:
            shardings = jax.tree.map(lambda x: x.sharding, training.pop("guard"))
            new["guard"] = jax.jit(functools.partial(GuardState.fresh, step), out_shardings=shardings)()
        items = {"model": abstract.model, "training": training}
        restored = self._restore(step, **{name: ocp.args.StandardRestore(item) for name, item in items.items()})
        return TrainState(model=restored.model, **restored.training, **new)

    def _read_item(self, step: int, item: str) -> dict[str, Any]:
        file = self.directory / str(step) / item / "metadata"  # the name that Orbax gives it
        return json_files.read(file, "is no part of a checkpoint", "use another checkpoint", LARGEST_ITEM)

    def _check_shapes(self, step: int, abstract: GPT2) -> None:
        """Raises `InputError` where the config asks for other parameters, before memory is taken for them."""
        shapes = lambda tree: {
            jax.tree_util.keystr(path[:-1], simple=True, separator="."): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }
        with self._unreadable_explained(step):
            there = shapes(ocp.StandardCheckpointHandler().metadata(self._manager.directory / str(step) / "model").tree)
        for name, shape in shapes(abstract).items():
            if there.get(name) != shape:
                raise InputError(
                    f"the checkpoint of step {step} in {self.directory} has {name} of shape {there.get(name)}, and its "
                    f"config asks for {shape}; if the config was changed, put it back, or use another checkpoint"
                )

    def _restore(self, step: int, **items: Any) -> Any:
        with self._unreadable_explained(step):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    @contextlib.contextmanager
    def _unreadable_explained(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of Orbax and TensorStore: no narrower class is common to them
            raise InputError(
                f"the checkpoint of step {step} in {self.directory} cannot be restored ({type(error).__name__}: "
                f"{one_line(error)}); use another checkpoint"
            ) from error

    @contextlib.contextmanager
    def _survived(self) -> Iterator[None]:
        """A save without which the run may go on, if `checkpoint.on_failure` says so."""
        goes_on = self._config.on_failure == "go_on"
        try:
            with self._failures_explained("training goes on, and saves the next that is due" if goes_on else AGAIN):
                yield
        except InputError as error:
            if not goes_on:
                raise
            self._tell(str(error))
            with contextlib.suppress(Exception):  # what was wrong is told
                self._manager.close()
            # What was half written takes up room; threads of the save that failed may still be at it, so that a rest
            # of it may stay until the run begins again.
            for path in self.directory.glob("*orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)
            self._manager = self._open(clean=False)  # the old one thinks that it has this checkpoint

    @contextlib.contextmanager
    def _failures_explained(self, then: str = AGAIN) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # TensorStore reports a full disk as a ValueError
            reason = next((reason for reason in DISK_FAILURES if reason in str(error)), None)
            if reason is None:
                raise
            # What is there, not what the manager remembers: it has forgotten those that this save was to replace.
            steps = sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())
            kept = f"steps {', '.join(map(str, steps))} are untouched" if steps else "none was there before"
            raise InputError(
                f"could not save the checkpoint of step {self._saving} to {self.directory}: {reason}; {kept}: {then}"
            ) from error


def _of_process_0(step: int) -> int:
    """The number that process 0 has, in all processes of a run."""
    return int(multihost_utils.broadcast_one_to_all(np.int64(step))) if jax.process_count() > 1 else step


def _policy(config: CheckpointConfig) -> policies.PreservationPolicy:
    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics["val_loss"],
        reverse=True,
        n=config.keep_best,
        keep_checkpoints_without_metrics=False,
    )
    # Besides what interruptions saved: a run goes back to the same ones, see `find_to_roll_back`.
    due = [policies.EveryNSteps(config.every, max_to_keep=config.keep)] if config.every else []
    for_good = [policies.EveryNSteps(config.keep_every)] if config.keep_every else []
    return policies.AnyPreservationPolicy([policies.LatestN(config.keep), best, *due, *for_good])


def _all_but_model(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "key": state.key, "guard": state.guard}


def abstract_state(shapes: Any, shardings: Any) -> Any:
    """Shapes (from `jax.eval_shape`) with their shardings: what `restore` needs."""
    as_struct = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(as_struct, shapes, shardings)

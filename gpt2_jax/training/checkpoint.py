"""What a checkpoint of a run holds, and how it is read: by Orbax, atomic, sealed by checksums.

`<workdir>/checkpoints/<step>/` holds four items: `model` (parameters), `training` (step, optimizer state, key, what
the guard knows), `config` and `tokenizer` (JSON), so that one checkpoint is enough to generate or to go on; of a run on
streamed text a fifth, `stream` (JSON), says where the next batch comes from (`Corpus.saved`), and of one with
`evaluation.patience` another, `evaluations`, what its validation losses were (`EarlyStopping`). Of a run with adapters
`model` holds what is trained alone, and `base` (JSON) says which model that belongs to (adapted.py). `manifest.json`
has the checksums of all files (see seal.py), and is compared with them before anything is read.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from absl import logging

from gpt2_jax import json_files
from gpt2_jax.errors import InputError, one_line, shown
from gpt2_jax.model import GPT2
from gpt2_jax.training import seal
from gpt2_jax.training.guard import GuardState
from gpt2_jax.training.step import TrainState

METRICS = "metrics"  # Orbax's item of it
LARGEST_ITEM = 128 << 20  # bytes of JSON; a tokenizer.json as a string is about twice as long
TO_READ = ("model", "config", "tokenizer")  # items that make a language model


class _Manager(ocp.CheckpointManager):
    """Orbax's, which a damaged file of metrics does not stop: what it says of "best" alone is lost."""

    def metrics(self, step: int) -> dict[str, float] | None:
        found = json_files.find(Path(self.directory) / str(step) / METRICS / METRICS)
        return found if found is not None and type(found.get("val_loss")) is float else None


class Checkpoints:
    """The checkpoints of a workdir, to read alone (checkpoint_writer.py saves them); a context manager."""

    def __init__(self, workdir: Path):
        """Opens those of a run.

        Raises:
          InputError: there are none, or one at which Orbax fails.
        """
        self._workdir = workdir
        self.directory = Path(workdir).absolute() / "checkpoints"
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        if not self.directory.is_dir():
            raise InputError(
                f"{self._workdir} holds no checkpoints; give the --workdir of a training run that has saved one"
            )
        verbosity = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)  # Orbax warns that what is opened to read cannot be written
        try:
            return self._manager_with(read_only=True, create=False)
        finally:
            logging.set_verbosity(verbosity)

    def _manager_with(self, **options: Any) -> ocp.CheckpointManager:
        """Orbax's manager of the folder, with these options besides those of what is read."""
        try:
            return _Manager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    best_fn=lambda metrics: metrics["val_loss"],
                    best_mode="min",
                    temporary_path_class=seal.SealedPath,
                    **options,
                ),
            )
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            steps = (path for path in sorted(self.directory.iterdir()) if path.name.isdigit())
            named = ", ".join(str(path) for path in steps if seal.damage(path, ())) or "its folder"
            raise InputError(
                f"{self.directory} cannot be opened ({type(error).__name__}: {one_line(error)}); the {seal.METADATA} "
                f"of a checkpoint is damaged: move {named} elsewhere, and the others are read"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
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
        training, new = all_but_model(abstract), {}
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


def all_but_model(state: TrainState) -> dict[str, Any]:
    """What the item `training` holds of a state."""
    return {"step": state.step, "opt_state": state.opt_state, "key": state.key, "guard": state.guard}


def abstract_state(shapes: Any, shardings: Any) -> Any:
    """Shapes (from `jax.eval_shape`) with their shardings: what `restore` needs."""
    as_struct = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(as_struct, shapes, shardings)

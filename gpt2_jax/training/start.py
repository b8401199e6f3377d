"""What a run is fine-tuned from: GPT-2's files, the hub, or a checkpoint of another run."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from gpt2_jax import lora, pretrained, tokenizer_files, weights
from gpt2_jax.config import Config
from gpt2_jax.errors import InputError, shown
from gpt2_jax.model import GPT2, model_of_shapes
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.multimodal import alone, completion
from gpt2_jax.resizing import resize
from gpt2_jax.sharding import check_mesh, tree_shardings
from gpt2_jax.tokenizer import Tokenizer
from gpt2_jax.training.checkpoint import Checkpoints, abstract_state

# What a config says of the model whatever it starts from; the other sizes of `config.json` are the start's.
OWN = (*pretrained.OWN_FIELDS, "resid_pdrop", "embd_pdrop", "attn_pdrop")
Read = Callable[[GPT2Config, Mesh], GPT2]  # (its sizes, the mesh) -> its parameters on it, stacked


@dataclasses.dataclass(frozen=True)
class Start:
    """A model to go on from, opened but not read.

    Attributes:
      name: what lines and errors call it.
      config: its sizes.
      tokenizer: its own.
      read: its parameters; None of the run's own checkpoint, which is restored with all else.
    """

    name: str
    config: GPT2Config
    tokenizer: Tokenizer
    read: Read | None = None

    def sized(self, options: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The options with the start's sizes in the group `model`; its own context may be shorter.

        Raises:
          InputError: an option that is neither at its default nor as the start has it.
        """
        model, different = dict(options.get("model", {})), []
        for field in dataclasses.fields(GPT2Config):
            name, theirs = field.name, getattr(self.config, field.name)
            given = model.get(name, field.default)
            if name in OWN or name == "vocab_size":
                continue
            if name == "n_positions" and given < theirs and given != field.default:
                continue
            if given not in (field.default, theirs):
                different.append(f"model.{name} ({theirs!r} there, {given!r} here)")
            model[name] = theirs
        if 0 < model.get("vocab_size", 0) < self.config.vocab_size:
            different.append(f"model.vocab_size ({self.config.vocab_size} there, {model['vocab_size']} here)")
        if different:
            raise InputError(
                f"finetune.start is {self.name}, of other sizes: {', '.join(different)}. Leave them out of the config: "
                "they are the start's (n_positions may be less than its own)"
            )
        return options | {"model": model}

    def check_fits(self, tokenizer: Tokenizer, option: str) -> None:
        """Raises `InputError` unless all the start's tokens have the same ids in `tokenizer`, of data.tokenizer."""
        if not tokenizer.extends(self.tokenizer):
            raise InputError(
                f"data.tokenizer is {shown(option)}, and gives other ids to pieces of text than that of {self.name}, "
                "whose embeddings would mean something else; set --config.data.tokenizer=start"
            )

    def load(self, config: GPT2Config, mesh: Mesh) -> GPT2:
        """Its parameters as a model of `config`, in parts on the mesh: a longer vocabulary, a shorter context.

        Raises:
          InputError: they cannot be read, or do not divide over the mesh.
        """
        # The same model but for the lengths of its tables.
        own = dataclasses.replace(config, vocab_size=self.config.vocab_size, n_positions=self.config.n_positions)
        check_mesh(mesh, own, {}, {})
        target, leaves = model_of_shapes(config, stacked=True), jax.tree.leaves(self.read(own, mesh))
        if [leaf.shape for leaf in leaves] == [leaf.shape for leaf in jax.tree.leaves(target)]:
            return jax.tree.unflatten(jax.tree.structure(target), leaves)
        model = jax.tree.unflatten(jax.tree.structure(model_of_shapes(own, stacked=True)), leaves)
        fit = functools.partial(resize, vocab_size=config.vocab_size, n_positions=config.n_positions)
        return jax.jit(fit, out_shardings=tree_shardings(target, mesh))(model)


def find_start(config: Config, workdir: Path) -> Start | None:
    """What the run goes on from: its own checkpoint, or else what `finetune.start` names; None: nothing.

    A run that goes on has all that it needs: what it started from may be gone.

    Raises:
      InputError: there is nothing such, or it cannot be opened.
    """
    if not config.finetune.start:
        return None
    if (workdir / "checkpoints").is_dir():
        with Checkpoints(workdir) as checkpoints:
            if checkpoints.steps:
                step = checkpoints.find(None, lambda _: None, ("config", "tokenizer"))
                groups, tokenizer = checkpoints.read_json(step)
                return Start(str(workdir), pretrained.model_of(groups), Tokenizer.from_json(tokenizer))
    return open_start(config.finetune.start)


def open_start(name: str) -> Start:
    """Opens what `FinetuneConfig.start` says.

    Raises:
      InputError: it is not there, or is no GPT-2.
    """
    pinned = "@" in name and not os.path.exists(os.path.expanduser(name))
    path, at, which = name.rpartition("@") if pinned else (name, "", "")
    if at and not (path and which):
        raise InputError(f"finetune.start is {shown(name)}; before and after its @ there must be something")
    folder = Path(os.path.expanduser(path))
    if os.path.isdir(folder / "checkpoints"):
        return _open_run(folder, which)
    if os.path.exists(folder) and at:
        raise InputError(f"finetune.start is {shown(name)}, but {path} is no training run; only runs have checkpoints")
    files = weights.find(folder if os.path.exists(folder) else pretrained.fetch(path, which or None))
    config, tokenizer = pretrained.load_config(files[0].parent), tokenizer_files.load(files[0].parent)

    def read(own: GPT2Config, mesh: Mesh) -> GPT2:
        shardings = tree_shardings(model_of_shapes(own, stacked=True), mesh)
        return weights.load(files, own, shardings=shardings, stacked=True)

    return _checked(Start(name, config, tokenizer, read))


def _open_run(folder: Path, which: str) -> Start:
    """A checkpoint of a run: its step, "best", "latest", or "": the best if there is one, else the latest.

    Of a run with images it is the GPT-2 alone.
    """
    if which not in ("", "best", "latest") and not which.isdecimal():
        raise InputError(
            f"finetune.start is {folder}@{which}; after the @ of a run there must be a step, 'best' or 'latest'"
        )
    with Checkpoints(folder) as checkpoints:
        if which == "":
            which = "latest" if checkpoints.best is None else "best"
        step = checkpoints.find(None if which == "latest" else which)
        groups, tokenizer = checkpoints.read_json(step)
    config, with_adapters = pretrained.model_of(groups), pretrained.adapters_of(groups)
    complete = completion(pretrained.image_of(groups))

    def read(own: GPT2Config, mesh: Mesh) -> GPT2:
        # As it was saved: padded to that run's own multiple.
        own = dataclasses.replace(own, vocab_multiple=config.vocab_multiple)
        shapes = jax.eval_shape(lambda key: complete(GPT2(own, key), key), jax.random.key(0))
        with Checkpoints(folder) as checkpoints:
            if with_adapters is not None:
                from gpt2_jax.training import adapted  # which opens starts itself

                return alone(lora.merge(adapted.restore(checkpoints, step, with_adapters, own, mesh)))
            model = checkpoints.restore_model(step, abstract_state(shapes, tree_shardings(shapes, mesh)))
        pretrained.check_finite(model, f"the checkpoint of step {step} in {checkpoints.directory}")
        return alone(model)

    return _checked(Start(f"step {step} of {folder}", config, Tokenizer.from_json(tokenizer), read))


def _checked(start: Start) -> Start:
    if len(start.tokenizer) > start.config.vocab_size:
        raise InputError(
            f"the tokenizer of {start.name} has {len(start.tokenizer)} entries and the model "
            f"{start.config.vocab_size}; they do not belong together"
        )
    return start

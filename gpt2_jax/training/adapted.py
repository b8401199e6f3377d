"""A checkpoint of adapters, and the model that they were trained on, which it does not hold.

Instead it has that model's fingerprint: where `finetune.start` is another one now, adapters are not put on it.
"""

import re

import jax
from jax.sharding import Mesh

from gpt2_jax import lora, vision_files
from gpt2_jax.config import Config
from gpt2_jax.errors import InputError
from gpt2_jax.fingerprint import fingerprint
from gpt2_jax.model import GPT2, parameter_name
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.multimodal import completion
from gpt2_jax.sharding import tree_shardings
from gpt2_jax.training.checkpoint import Checkpoints, abstract_state
from gpt2_jax.training.selection import join, split
from gpt2_jax.training.start import open_start


def check_new_rows(config: Config, vocab_size: int) -> None:
    """Raises `InputError` where the start's vocabulary grows and adapters leave the new rows as they are."""
    tables = {"wte.embedding"} if config.model.tie_word_embeddings else {"wte.embedding", "lm_head.embedding"}
    left = [name for name in sorted(tables) if not re.search(config.selection.train, name)]
    if config.lora.rank and config.model.vocab_size > vocab_size and left:
        raise InputError(
            f"lora.also_train is {config.lora.also_train!r}, and the vocabulary grows from {vocab_size} to "
            f"{config.model.vocab_size} tokens whose rows would never be learnt; train {' and '.join(left)}, too: "
            f'--config.lora.also_train="{"|".join(sorted(tables))}"'
        )


def check_images_trained(config: Config) -> None:
    """Raises `InputError` where adapters are trained and what reads images is new, and would never be."""
    drawn = not config.image.weights and not config.image.features
    names = ["prefix.c_proj.kernel"] + ["vision.patch.kernel"] * drawn
    left = [name for name in names if not re.search(config.selection.train, name)]
    if config.lora.rank and config.image.source and left:
        raise InputError(
            f"lora.also_train is {config.lora.also_train!r}, and {' and '.join(left)} would never be learnt; train "
            'what reads images whole, beside the adapters: --config.lora.also_train="^(vision|prefix)"'
        )


def restore(checkpoints: Checkpoints, step: int, config: Config, sizes: GPT2Config, mesh: Mesh) -> GPT2:
    """The model of a checkpoint with its adapters attached, on a mesh.

    Args:
      checkpoints: of the run.
      step: of the checkpoint.
      config: of the run, or its groups `finetune` and `lora`.
      sizes: of the model.
      mesh: of devices.

    Raises:
      InputError: what `finetune.start` names is gone, or another model; or as `Checkpoints.restore_model`.
    """
    complete = completion(config.image)
    make = lambda key: lora.attach(complete(GPT2(sizes, key), key), config.lora, key)
    shapes = jax.eval_shape(make, jax.random.key(0))
    abstract = abstract_state(shapes, tree_shardings(shapes, mesh))
    trained = checkpoints.restore_model(step, split(abstract, config.selection)[0])
    return with_base(trained, checkpoints, step, config, sizes, mesh)


def with_base(
    trained: GPT2, checkpoints: Checkpoints, step: int, config: Config, sizes: GPT2Config, mesh: Mesh
) -> GPT2:
    """The model of which a checkpoint holds the part that is `trained`, None elsewhere; else as `restore`."""
    start, there = config.finetune.start, f"the checkpoint of step {step} in {checkpoints.directory}"
    try:
        base = open_start(start).load(sizes, mesh)
    except InputError as error:
        raise InputError(
            f"{there} holds adapters alone, and the model that they were trained on cannot be opened ({error}); bring "
            f"{start} back, or give another copy of it as --config.finetune.start of the run"
        ) from None
    leaves = {parameter_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(base)}
    if config.image.weights:
        leaves |= vision_files.named(config.image.weights, config.image, sizes)
    frozen = jax.tree_util.tree_map_with_path(
        lambda path, x: leaves[parameter_name(path)] if x is None else None, trained, is_leaf=lambda x: x is None
    )
    saved = checkpoints.read_base(step)
    if (found := fingerprint(frozen)) != saved.get("fingerprint"):
        raise InputError(
            f"{start} is another model than the one that the adapters of {there} were trained on (fingerprint {found}, "
            f"not {saved.get('fingerprint')}); bring that one back, or give a copy of it as --config.finetune.start"
        )
    return join(trained, frozen)

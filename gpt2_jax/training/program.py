"""What of a run is compiled for its devices, whether they are here or not."""

import dataclasses
import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt2_jax import engines
from gpt2_jax.config import Config
from gpt2_jax.errors import InputError
from gpt2_jax.model import num_parameters
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.multimodal import completion
from gpt2_jax.sharding import check_mesh, tree_shardings
from gpt2_jax.training.optimizer import make_optimizer, make_schedule
from gpt2_jax.training.selection import split
from gpt2_jax.training.step import TrainState, eval_step, init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of a run, jitted for a mesh, which must be in force where they are called or lowered.

    Attributes:
      mesh: of all devices.
      model: the config's, with the attention engine chosen.
      trained_parameters: how many are, those of layers that are frozen within a stack among them.
      init: makes a fresh state, of the parameters of a model if it is given one.
      shapes, shardings: of a state.
      train_step: donates the state.
      eval_step: sums over a batch.
    """

    mesh: Mesh
    model: GPT2Config
    trained_parameters: int
    init: Callable[..., TrainState]
    shapes: TrainState
    shardings: TrainState
    train_step: jax.stages.Wrapped
    eval_step: jax.stages.Wrapped

    @classmethod
    def of(cls, config: Config, mesh: Mesh) -> "Program":
        """Builds it; nothing is compiled yet.

        Raises:
          InputError: the batches or the model do not divide over the mesh, the attention engine cannot do this, or no
            parameter is trained.
        """
        training, T = config.training, config.sequence_length
        parts, chunks = training.accumulation_steps, training.loss_chunks
        check_mesh(
            mesh,
            config.model,
            {
                "training.batch_size / training.accumulation_steps": training.batch_size // parts,
                "evaluation.batch_size": eval_batch_size(config),
            },
            {"the sequence length / training.loss_chunks": T // chunks},
        )
        if config.image.source:
            check_image_mesh(mesh, config)
        platform = mesh.devices.flat[0].platform
        platform = "gpu" if platform == "cuda" else platform  # as those say that are not here
        engine = engines.choose(config.model, platform, T, mesh.shape["sequence"])
        model = dataclasses.replace(config.model, attention=engine)
        tx = make_optimizer(config.optimizer, training.steps)
        schedule = make_schedule(config.optimizer, training.steps)
        init = functools.partial(
            init_state, model, tx, training.seed, config.selection,
            adapters=config.lora, complete=completion(config.image),
        )  # fmt: skip
        shapes = jax.eval_shape(init)
        shardings = tree_shardings(shapes, mesh)
        shifts = [step for step, _ in config.data.reweighing[1:]]
        train_step = make_train_step(
            tx,
            schedule,
            accumulation_steps=parts,
            loss_chunks=chunks,
            guard=config.guard,
            finetune=config.selection,
            shifts=shifts,
        )
        everywhere = NamedSharding(mesh, P())  # of metrics: every process decides by them
        return cls(
            mesh=mesh,
            model=model,
            trained_parameters=num_parameters(split(shapes.model, config.selection)[0]),
            init=init,
            shapes=shapes,
            shardings=shardings,
            train_step=jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, everywhere)),
            eval_step=jax.jit(functools.partial(eval_step, loss_chunks=chunks)),
        )


def check_image_mesh(mesh: Mesh, config: Config) -> None:
    """Raises `InputError` unless the mesh can cut what reads images."""
    if mesh.shape["sequence"] > 1:
        raise InputError(
            f"mesh.sequence is {mesh.shape['sequence']}, which would cut images in pieces; leave it at 1 with "
            "image.source, and cut the batch or the model (mesh.data, mesh.fsdp, mesh.model)"
        )
    if not config.image.features:
        check_mesh(mesh, config.image.blocks(config.model), {}, {}, group="image")


def eval_batch_size(config: Config) -> int:
    """Sequences in one evaluation step."""
    return config.evaluation.batch_size or config.training.batch_size // config.training.accumulation_steps

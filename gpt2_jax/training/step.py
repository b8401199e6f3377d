"""One training step and one evaluation step: pure functions, jitted by whoever calls them.

A batch is `{"tokens": int32 [B, T + 1], "mask": bool [B, T]}`; mask is True where the prediction of `tokens[:, 1:]`
counts. It may have `segments` and `positions`, int32 [B, T], of its inputs `tokens[:, :-1]`, and `images` [B, ...],
where the model reads them. Axes as in model.py.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gpt2_jax import lora
from gpt2_jax.config import FinetuneConfig, GuardConfig, LoraConfig
from gpt2_jax.model import GPT2
from gpt2_jax.model_config import GPT2Config
from gpt2_jax.training.guard import GuardState, judge, unwatched
from gpt2_jax.training.loss import cross_entropy, in_chunks
from gpt2_jax.training.selection import ALL, at_rates, join, split, without_frozen_layers

Batch = dict[str, jax.Array]
UNGUARDED = GuardConfig(skips=0)
NO_ADAPTERS = LoraConfig()


class TrainState(NamedTuple):
    """Everything a run is: saving it whole and restoring it goes on bit for bit."""

    step: jax.Array  # int32 [], steps done, those that the guard skipped included
    model: GPT2
    opt_state: optax.OptState
    key: jax.Array  # key data, uint32 [...]; dropout at a step uses fold_in(key, step)
    guard: GuardState


def init_state(
    config: GPT2Config,
    tx: optax.GradientTransformation,
    seed: int,
    finetune: FinetuneConfig = ALL,
    model: GPT2 | None = None,
    *,
    adapters: LoraConfig = NO_ADAPTERS,
    complete: Callable[[GPT2, jax.Array], GPT2] = lambda model, key: model,
) -> TrainState:
    """A fresh state; call it inside jit with out_shardings so that it is born sharded.

    Its parameters are those of `model`, or else drawn, with `adapters` that are new and what `complete` adds to it (see
    `multimodal.completion`). The optimizer's part is of those that are trained.
    """
    init_key, dropout_key = jax.random.split(jax.random.key(seed))
    model = GPT2(config, init_key) if model is None else model
    model = complete(model, init_key)
    if adapters.rank:
        model = lora.attach(model, adapters, jax.random.fold_in(init_key, 1))
    key = jax.random.key_data(dropout_key)
    trained, _ = split(model, finetune)
    return TrainState(jnp.zeros((), jnp.int32), model, tx.init(trained), key, GuardState.fresh())


def sum_of_losses(model: GPT2, batch: Batch, *, key: jax.Array | None = None, chunks: int = 1) -> jax.Array:
    """The summed cross entropy of the next token, in nats, over the positions that count.

    Args:
      model: stacked or not.
      batch: see above.
      key: for dropout; None drops nothing.
      chunks: parts of T whose float32 logits [B, T / chunks, V] are made one after another, and with them their part
        of the gradient; must divide T.

    Returns:
      float32 [].
    """
    inputs, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
    more = {name: batch[name] for name in batch.keys() - {"tokens", "mask"}}
    x = model.hidden(inputs, key=key, **more)  # [B, T, C]
    if chunks == 1:
        return cross_entropy(model.head(x), targets, batch["mask"])
    return in_chunks(model.config, chunks, *model.head_table(), x, targets, batch["mask"])


def make_train_step(
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    accumulation_steps: int = 1,
    loss_chunks: int = 1,
    guard: GuardConfig = UNGUARDED,
    finetune: FinetuneConfig = ALL,
    shifts: Sequence[int] = (),
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """The optimizer step: `(state, batch) -> (state, metrics)`.

    The loss is the mean over the positions of the whole batch that count, however many parts it is computed in. Of a
    step that the guard skips, parameters and optimizer state stay as they were.

    Args:
      tx: from `make_optimizer`.
      schedule: the learning rate, for the metrics.
      accumulation_steps: parts of the batch, one after another; must divide B.
      loss_chunks: see `sum_of_losses`.
      guard: what is skipped.
      finetune: what is trained, and how fast; the gradient norm is of that part.
      shifts: see `judge`.
    """

    tx = optax.with_extra_args_support(tx)

    def value_and_grad(
        trained: GPT2, frozen: GPT2, count: jax.Array, batch: Batch, key: jax.Array | None
    ) -> tuple[jax.Array, GPT2]:
        mean = lambda trained: sum_of_losses(join(trained, frozen), batch, key=key, chunks=loss_chunks) / count
        return jax.value_and_grad(mean)(trained)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        config = state.model.config
        drops = max(config.resid_pdrop, config.embd_pdrop, config.attn_pdrop, lora.dropout_of(state.model)) > 0
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step) if drops else None
        count = jnp.maximum(batch["mask"].sum(), 1)
        trained, frozen = split(state.model, finetune)
        if accumulation_steps == 1:
            loss, grads = value_and_grad(trained, frozen, count, batch, key)
        else:
            # Part i takes rows i, i + n, ...: a device's rows are in every part, so nothing moves between devices.
            parts = {k: a.reshape(-1, accumulation_steps, *a.shape[1:]).swapaxes(0, 1) for k, a in batch.items()}
            keys = jax.random.split(key, accumulation_steps) if drops else None

            def add(total, part):
                return jax.tree.map(jnp.add, total, value_and_grad(trained, frozen, count, *part)), None

            zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, trained))
            (loss, grads), _ = jax.lax.scan(add, zeros, (parts, keys))
        grads = without_frozen_layers(grads, finetune)
        grad_norm = optax.tree.norm(grads)
        learning_rate = schedule(state.step - state.guard.missed)  # the optimizer counts its updates
        watch = judge if guard.skips else unwatched
        good, watched = watch(state.guard, state.step, loss, grad_norm, guard, shifts)

        def update() -> tuple[GPT2, optax.OptState]:
            updates, opt_state = tx.update(grads, state.opt_state, trained, grad_norm=grad_norm)
            return optax.apply_updates(trained, at_rates(updates, finetune)), opt_state

        # Not `where`: on CPU that took 1 to 11 % more than no guard, and the memory of half a state; this under 1 %.
        trained, opt_state = jax.lax.cond(good, update, lambda: (trained, state.opt_state))
        metrics = {"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate, "guard": watched}
        return TrainState(state.step + 1, join(trained, frozen), opt_state, state.key, watched), metrics

    return train_step


def eval_step(model: GPT2, batch: Batch, *, loss_chunks: int = 1) -> dict[str, Any]:
    """Sums over a batch without dropout: `{"loss": nats [], "count": positions []}`, to be added up over batches."""
    return {"loss": sum_of_losses(model, batch, chunks=loss_chunks), "count": batch["mask"].sum()}

"""The log-probabilities that a model gives to tokens: one compiled program for each length, on one device or several.

Axes as in model.py; N positions of a device, K of them at a time.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt2_jax import engines
from gpt2_jax.errors import InputError, check
from gpt2_jax.generation.sampler import bucket
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.model import GPT2

FEWEST, MOST = 64, 256  # positions whose logits are made at a time; below 256 a product takes longer for each
AXIS = "rows"  # of the mesh, not the one of training


def spread(lm: LanguageModel, devices: int | None = None) -> LanguageModel:
    """The same model, whole on each device; those who score with it give each device its share of the rows.

    Args:
      lm: on one device.
      devices: so many of this process; None is all of them.

    Raises:
      InputError: there are not so many.
    """
    there = jax.local_devices()
    check(devices is None or 1 <= devices <= len(there), "devices", devices, f"1 to {len(there)}, as many as there are")
    devices = there[:devices]
    if len(devices) == 1:
        return type(lm)(jax.device_put(lm.model, devices[0]), lm.tokenizer)
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return type(lm)(jax.device_put(lm.model, NamedSharding(mesh, P())), lm.tokenizer)


def mesh_of(model: GPT2) -> Mesh | None:
    """The mesh that `spread` laid a model out on; None is one device."""
    sharding = jax.tree.leaves(model)[0].sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == (AXIS,) else None


def in_batches(
    model: GPT2, sequences: Sequence[np.ndarray], starts: Sequence[int], batch_size: int, *, skip: int = 0
) -> Iterator[list[tuple[int, np.ndarray, np.ndarray]]]:
    """The log-probabilities of the ends of sequences, each token under those before it, batch by batch.

    The longest come first, and a batch's length is rounded up to a power of two: few programs are compiled, and other
    data compile no others. While a batch is read here the devices are at the next.

    Args:
      model: stacked or not; where `spread` laid it out, devices share each batch.
      sequences: int [n], 2 to n_positions + 1 tokens of the vocabulary each.
      starts: of each, the first token that counts, at least 1.
      batch_size: sequences in a batch; with several devices, rounded up to a multiple of them.
      skip: batches that are left out at the beginning.

    Yields:
      Of each sequence of a batch its index, the log-probabilities (float32 [n - start]) of the tokens that count, and
      whether each was the most probable (bool).

    Raises:
      InputError: a batch size below 1.
    """
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; it must be an integer of at least 1")
    mesh = mesh_of(model)
    devices = 1 if mesh is None else mesh.size
    rows = min(batch_size, 1 << max(0, len(sequences) - 1).bit_length())
    rows = -(-rows // devices) * devices
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    batches = [order[first : first + rows] for first in range(0, len(order), rows)]
    waiting = None
    for batch in [*batches[skip:], None]:
        arrays = None
        if batch is not None:
            arrays = _of_rows(model, [sequences[i] for i in batch], [starts[i] for i in batch], rows)
        if waiting is not None:
            logprobs, greedy = map(np.asarray, waiting[1])
            places = [slice(starts[i] - 1, len(sequences[i]) - 1) for i in waiting[0]]
            yield [
                (i, logprobs[row, at].copy(), greedy[row, at].copy())
                for row, (i, at) in enumerate(zip(waiting[0], places))
            ]
        waiting = batch, arrays


def _of_rows(
    model: GPT2, sequences: Sequence[np.ndarray], starts: Sequence[int], rows: int
) -> tuple[jax.Array, jax.Array]:
    """Float32 and bool [rows, T], not waited for: at place i - 1 those of token i; 0 and False where none counts."""
    length = bucket(max(map(len, sequences)) - 1, model.config.n_positions)
    tokens, mask = np.zeros((rows, length + 1), np.int32), np.zeros((rows, length), bool)
    for row, (sequence, start) in enumerate(zip(sequences, starts)):
        tokens[row, : len(sequence)] = sequence
        mask[row, start - 1 : len(sequence) - 1] = True
    mesh = mesh_of(model)
    if mesh is not None:
        tokens, mask = jax.device_put((tokens, mask), NamedSharding(mesh, P(AXIS)))
    return _log_probabilities(model, tokens, mask, mesh)


@functools.partial(jax.jit, static_argnames="mesh")
def _log_probabilities(model: GPT2, tokens: jax.Array, mask: jax.Array, mesh: Mesh | None):
    """tokens [B, T + 1] and mask [B, T] -> float32 and bool [B, T]."""
    on_device = functools.partial(_on_device, jax.default_backend() if mesh is None else mesh.devices.flat[0].platform)
    if mesh is None:
        return on_device(model, tokens, mask)
    specs = P(), P(AXIS), P(AXIS)
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False)(model, tokens, mask)


def _on_device(platform: str, model: GPT2, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    inputs, targets = tokens[:, :-1], tokens[:, 1:].reshape(-1)
    x = _with_engine(model, platform, inputs.shape[1]).hidden(inputs)
    x = x.reshape(-1, x.shape[-1])  # [N, C]
    N, K = len(x), min(len(x), max(FEWEST, min(MOST, inputs.shape[1])))
    # Only states that count get logits, K at a time: as many turns as there are such, whatever rows they are in.
    places = jnp.nonzero(mask.reshape(-1), size=-(-N // K) * K, fill_value=N)[0]

    def turn(i: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        at = jax.lax.dynamic_slice_in_dim(places, i * K, K)
        here = jnp.minimum(at, N - 1)
        logits = model.head(x[here])  # [K, V]
        chosen = jnp.take_along_axis(logits, targets[here][:, None], axis=1)[:, 0]
        largest = logits.max(-1)  # not argmax, which takes XLA on CPU half as long as the product
        sums = jnp.exp(logits - largest[:, None]).sum(-1)
        logprobs, greedy = found
        logprobs = logprobs.at[at].set(chosen - largest - jnp.log(sums), mode="drop")
        return logprobs, greedy.at[at].set(chosen >= largest, mode="drop")

    turns = (mask.sum() + K - 1) // K
    logprobs, greedy = jax.lax.fori_loop(0, turns, turn, (jnp.zeros(N), jnp.zeros(N, bool)))
    return logprobs.reshape(mask.shape), greedy.reshape(mask.shape)


def _with_engine(model: GPT2, platform: str, T: int) -> GPT2:
    """The model with the attention that is the best for a platform, whatever it was trained with; a mix as it is."""
    if not isinstance(model, GPT2):
        return model
    platform = "gpu" if platform == "cuda" else platform
    config = dataclasses.replace(model.config, attention="auto", attn_pdrop=0.0)
    copy = jax.tree.unflatten(jax.tree.structure(model), jax.tree.leaves(model))
    copy.config = dataclasses.replace(config, attention=engines.choose(config, platform, T))
    return copy

"""The log-probabilities that a model gives to tokens: one compiled program for each length, on one device or several.

Axes as in model.py; N positions of a device, K of them at a time.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt2_jax import engines
from gpt2_jax.errors import InputError
from gpt2_jax.generation.sampler import bucket
from gpt2_jax.language_model import LanguageModel
from gpt2_jax.model import GPT2, logits_of

FEWEST, MOST = 64, 256  # positions whose logits are made at a time; below 256 a product takes longer for each
AXIS = "rows"  # of the mesh, not the one of training


def spread(lm: LanguageModel, devices: Sequence[jax.Device] | None = None) -> LanguageModel:
    """The same model, whole on each device; those who score with it give each device its share of the rows.

    Args:
      lm: on one device.
      devices: of this process; None is all of them.
    """
    devices = jax.local_devices() if devices is None else list(devices)
    if len(devices) == 1:
        return LanguageModel(jax.device_put(lm.model, devices[0]), lm.tokenizer)
    mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
    return LanguageModel(jax.device_put(lm.model, NamedSharding(mesh, P())), lm.tokenizer)


def mesh_of(model: GPT2) -> Mesh | None:
    """The mesh that `spread` laid a model out on; None is one device."""
    sharding = jax.tree.leaves(model)[0].sharding
    return sharding.mesh if isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == (AXIS,) else None


def check_batch_size(batch_size: int) -> None:
    """Raises `InputError` unless it is a positive integer."""
    if not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; it must be an integer of at least 1")


def rows_of_batch(batch_size: int, sequences: int, devices: int) -> int:
    """How many rows each batch of so many sequences has: a power of two or `batch_size`, that devices can share."""
    rows = min(batch_size, 1 << max(0, sequences - 1).bit_length())
    return -(-rows // devices) * devices


def of_rows(
    model: GPT2, sequences: Sequence[np.ndarray], starts: Sequence[int], rows: int
) -> tuple[jax.Array, jax.Array]:
    """The log-probabilities of the ends of sequences, each token under those before it.

    The lengths are rounded up to a power of two, so that few programs are compiled; nothing is waited for.

    Args:
      model: stacked or not.
      sequences: int [n], 2 to n_positions + 1 tokens of the vocabulary each; at most `rows` of them.
      starts: of each, the first token that counts, at least 1.
      rows: of the batch; the devices of `spread` must divide it.

    Returns:
      Float32 and bool [rows, T]: at place i - 1 what token i has, and whether it is the most probable; 0 and False
      where nothing counts.
    """
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
    x = _with_engine(model, platform, inputs.shape[1]).hidden(inputs).reshape(-1, model.config.n_embd)  # [N, C]
    _, table = model.head_table()
    table = table.astype(x.dtype)
    N, K = len(x), min(len(x), max(FEWEST, min(MOST, inputs.shape[1])))
    # Only states that count get logits, K at a time: as many turns as there are such, whatever rows they are in.
    places = jnp.nonzero(mask.reshape(-1), size=-(-N // K) * K, fill_value=N)[0]

    def turn(i: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        at = jax.lax.dynamic_slice_in_dim(places, i * K, K)
        here = jnp.minimum(at, N - 1)
        logits = logits_of(model.config, table, x[here])  # [K, V]
        chosen = jnp.take_along_axis(logits, targets[here][:, None], axis=1)[:, 0]
        logprobs, greedy = found
        logprobs = logprobs.at[at].set(chosen - jax.nn.logsumexp(logits, axis=-1), mode="drop")
        return logprobs, greedy.at[at].set(logits.argmax(-1) == targets[here], mode="drop")

    turns = (mask.sum() + K - 1) // K
    logprobs, greedy = jax.lax.fori_loop(0, turns, turn, (jnp.zeros(N), jnp.zeros(N, bool)))
    return logprobs.reshape(mask.shape), greedy.reshape(mask.shape)


def _with_engine(model: GPT2, platform: str, T: int) -> GPT2:
    """The model with the attention that is the best for a platform, whatever it was trained with."""
    platform = "gpu" if platform == "cuda" else platform
    config = dataclasses.replace(model.config, attention="auto", attn_pdrop=0.0)
    copy = jax.tree.unflatten(jax.tree.structure(model), jax.tree.leaves(model))
    copy.config = dataclasses.replace(config, attention=engines.choose(config, platform, T))
    return copy

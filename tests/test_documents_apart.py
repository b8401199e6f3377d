"""Documents packed into a window, with attention that does not cross from one to another."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from short_runs import run

from gpt2_jax import InputError
from gpt2_jax.config import MeshConfig
from gpt2_jax.data.windows import boundaries
from gpt2_jax.model import unstack
from gpt2_jax.training.step import eval_step, sum_of_losses

END = 100
forward = jax.jit(lambda model, tokens, **options: model(tokens, **options))


def documents(seed: int, lengths: list[int]) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, END, length).tolist() for length in lengths]


def packed(texts: list[list[int]]) -> np.ndarray:
    """One row [T+1]: each text after end-of-text, and end-of-text."""
    return np.array([*itertools.chain.from_iterable([END, *text] for text in texts), END], np.int32)


def apart(tokens: np.ndarray) -> dict[str, np.ndarray]:
    return boundaries(tokens, END, mask_documents=True, restart_positions=True)


@pytest.mark.parametrize("change", [lambda model: model, unstack], ids=["stacked", "unstacked"])
def test_a_document_in_a_window_has_the_logits_it_has_alone(tiny_model, change):
    texts = documents(0, [5, 1, 9, 0, 8])
    rows = np.stack([packed(texts), packed(texts[::-1])])
    model = change(tiny_model)
    logits = forward(model, rows[:, :-1], **apart(rows))
    mixed = forward(model, rows[:, :-1])
    for row, order in enumerate((texts, texts[::-1])):
        start = 0
        for text in order:
            stop = start + 1 + len(text)
            alone = forward(model, np.array([[END, *text]]))[0]
            np.testing.assert_allclose(logits[row, start:stop], alone, rtol=1e-4, atol=1e-5)
            if start:
                assert np.abs(mixed[row, start:stop] - alone).max() > 1e-2
            start = stop


def test_no_gradient_crosses_from_a_document_to_another(tiny_model):
    """The gradient of each logit for the position added at each input is zero unless both are of one segment."""
    rows = packed(documents(1, [3, 0, 4]))[None]
    segments = apart(rows)["segments"]
    T = segments.shape[1]

    def outputs(added):  # [T, C]
        model = jax.tree.map(lambda x: x, tiny_model)
        model.wpe.embedding[...] = tiny_model.wpe.embedding[...].at[:T].add(added)
        return model(rows[:, :-1], segments=segments).sum(-1)[0]  # [T]

    reach = np.abs(jax.jit(jax.jacobian(outputs))(jnp.zeros((T, tiny_model.config.n_embd)))).sum(-1)  # [T, S]
    allowed = np.tril(segments[0][:, None] == segments[0])
    assert (reach[~allowed] == 0).all() and (reach[allowed] > 0).all()


def test_positions_alone(tiny_model, tokens):
    shifted = np.broadcast_to(np.arange(3, 19), tokens.shape)
    model = jax.tree.map(lambda x: x, tiny_model)
    model.wpe.embedding[...] = jnp.roll(tiny_model.wpe.embedding[...], -3, axis=0)
    np.testing.assert_allclose(forward(tiny_model, tokens, positions=shifted), forward(model, tokens), rtol=1e-5)


def test_one_segment_and_rising_positions_change_nothing(tiny_model, tokens):
    rising = np.broadcast_to(np.arange(16), tokens.shape)
    same = forward(tiny_model, tokens, segments=np.zeros_like(tokens), positions=rising)
    np.testing.assert_allclose(same, forward(tiny_model, tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": np.zeros((2, 15), np.int32)}, r"segments are int32\[2, 15\]; they must be integers \[2, 16\]"),
        ({"segments": np.zeros((2, 16), np.float32)}, r"segments are float32\[2, 16\]; they must be integers"),
        ({"positions": np.zeros(16, np.int32)}, r"positions are int32\[16\]; they must be integers \[2, 16\], one a"),
        ({"positions": np.full((2, 16), 32)}, "positions are from 32 to 32; they must be from 0 to 31"),
        ({"positions": np.full((2, 16), -1)}, "positions are from -1 to -1; they must be from 0 to 31"),
    ],
)
def test_bad_rows(tiny_model, tokens, options, message):
    with pytest.raises(InputError, match=message):
        tiny_model(tokens, **options)


def batches(count: int) -> list[dict[str, np.ndarray]]:
    """Batches of 8 sequences of 16, of short documents, each with all entries that a batch can have."""
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, END, (count, 8, 17)).astype(np.int32)
    tokens[rng.random(tokens.shape) < 0.15] = END
    masks = rng.random((count, 8, 16)) < 0.7
    return [{"tokens": rows, "mask": mask, **apart(rows)} for rows, mask in zip(tokens, masks)]


def curve(config, mesh: MeshConfig, devices: int, **options) -> np.ndarray:
    """Losses and gradient norms [steps, 2]."""
    return run(config, batches(3), mesh=mesh, devices=jax.devices()[:devices], **options)[0]


def test_parts_and_chunks_change_nothing(tiny):
    """On meshes: test_meshes.py."""
    got = curve(tiny, MeshConfig(1, 2, 1), 2, accumulation_steps=4, loss_chunks=4)
    np.testing.assert_allclose(got, curve(tiny, MeshConfig(), 1), rtol=1e-5)


def test_evaluation_sees_documents_apart(tiny_model):
    (batch,) = batches(1)
    logits = np.asarray(forward(tiny_model, batch["tokens"][:, :-1], **apart(batch["tokens"])), np.float64)
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, batch["tokens"][:, 1:, None], -1)[..., 0]
    sums = jax.jit(eval_step)(tiny_model, batch)
    np.testing.assert_allclose(sums["loss"], losses[batch["mask"]].sum(), rtol=1e-5)
    assert sums["count"] == batch["mask"].sum()
    plain = {name: batch[name] for name in ("tokens", "mask")}
    assert abs(sums["loss"] - jax.jit(sum_of_losses)(tiny_model, plain)) > 1

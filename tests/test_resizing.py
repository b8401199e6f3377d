import dataclasses

import jax
import numpy as np
import pytest

from gpt2_jax import GPT2, InputError, resize
from gpt2_jax.model import unstack


@pytest.fixture(scope="module")
def untied(tiny):
    return jax.jit(GPT2, static_argnums=0)(dataclasses.replace(tiny, tie_word_embeddings=False), jax.random.key(2))


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("of", [lambda model: model, unstack])
def test_resize(of, tiny, tiny_model, untied, tokens):
    V = tiny.vocab_size
    for old in (of(tiny_model), of(untied)):
        grown = resize(old, vocab_size=V + 40)
        assert grown.config.vocab_size == V + 40 and jax.tree.structure(grown) != jax.tree.structure(old)
        tables = [(grown.wte, old.wte)] + ([] if tiny == old.config else [(grown.lm_head, old.lm_head)])
        for new_table, table in tables:
            rows, was = np.asarray(new_table.embedding[...]), np.asarray(table.embedding[...])[:V]
            assert len(rows) == grown.config.padded_vocab_size == 256
            np.testing.assert_array_equal(rows[:V], was)
            np.testing.assert_allclose(rows[V : V + 40], np.tile(was.mean(0), (40, 1)), rtol=1e-5, atol=1e-7)
            assert not rows[V + 40 :].any()
        logits = grown(tokens)
        assert logits.shape[-1] == V + 40
        np.testing.assert_allclose(logits[..., :V], old(tokens), atol=2e-4)
        back = resize(grown, vocab_size=V)
        assert_same(back, old)
        few = resize(old, vocab_size=50, n_positions=16)
        np.testing.assert_allclose(few(tokens % 50), old(tokens % 50)[..., :50], atol=2e-4)
        assert few.wpe.embedding.shape == (16, 32)
        assert_same(resize(old), old)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"n_positions": 33},
            "n_positions is 33; the model has 32 positions and can only be cropped: use as many or few",
        ),
        ({"n_positions": 0}, "n_positions is 0; it must be at least 1"),
        ({"vocab_size": 0}, "vocab_size is 0; it must be at least 1"),
        ({"vocab_size": -5}, "vocab_size is -5; it must be at least 1"),
    ],
)
def test_sizes_that_are_refused(sizes, message, tiny_model):
    with pytest.raises(InputError, match=message):
        resize(tiny_model, **sizes)

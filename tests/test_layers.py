import jax
import jax.numpy as jnp
import pytest

from gpt2_jax.layers import dropout


def test_dropout_keeps_the_mean_and_needs_a_key():
    x = jnp.ones((200, 200))
    dropped = dropout(x, 0.25, jax.random.key(0))
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
    assert float((dropped == 0).mean()) == pytest.approx(0.25, abs=0.02)
    assert dropout(x, 0.25, None) is x and dropout(x, 0.0, jax.random.key(0)) is x

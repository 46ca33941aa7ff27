"""Optimizers by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainers.optimizer import OptimizerSettings, schedule


@pytest.mark.parametrize("name", ["sgd", "normalized", "momentum", "adam", "adamw"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_every_optimizer_descends(name, clip):
    rate = schedule("cosine", 0.3, 0.0, 200, warmup=0)
    chosen = OptimizerSettings(optimizer=name, clip=clip).transformation(rate)
    x = {"a": jnp.array([3.0, -2.0])}
    state = chosen.init(x)
    for _ in range(200):
        updates, state = chosen.update(x, state, x)
        x = jax.tree.map(jnp.add, x, updates)
    np.testing.assert_allclose(x["a"], 0, atol=0.1)


def test_a_normalized_step_has_the_length_of_the_rate():
    rate = schedule("constant", 0.5, 0.0, 10, warmup=0)
    chosen = OptimizerSettings(optimizer="normalized", clip=None).transformation(rate)
    for scale in (1e-3, 1.0, 1e3):
        grads = {"a": scale * jnp.array([3.0, 0.0]), "b": scale * jnp.array([4.0])}
        updates, _ = chosen.update(grads, chosen.init(grads))
        np.testing.assert_allclose(updates["a"], [-0.3, 0.0], rtol=1e-5)
        np.testing.assert_allclose(updates["b"], [-0.4], rtol=1e-5)
    zeros = {"a": jnp.zeros(2)}
    updates, _ = chosen.update(zeros, chosen.init(zeros))
    np.testing.assert_array_equal(updates["a"], 0)

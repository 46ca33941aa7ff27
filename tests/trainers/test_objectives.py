"""Objectives against their formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from grlu.errors import UserError
from trainers.objectives import Reconstruction

TARGET = np.array([[[0.0], [1.0]], [[0.25], [1.0]]], np.float32)
OUT = np.array([[[-3.0], [0.5]], [[2.0], [100.0]]], np.float32)


def reward(objective):
    rewards, values = objective(lambda x: jnp.asarray(OUT), {"image": jnp.asarray(TARGET)})
    np.testing.assert_array_equal(rewards, values["reward"])
    assert set(values) == set(objective.metrics)
    return rewards, values["mse"]


def test_bernoulli_is_the_cross_entropy_in_summed_nats():
    p = 1 / (1 + np.exp(-OUT.astype(np.float64)))
    with np.errstate(divide="ignore", invalid="ignore"):
        nats = TARGET * np.log(p) + np.where(TARGET < 1, (1 - TARGET) * np.log(1 - p), 0)
    rewards, mse = reward(Reconstruction())
    np.testing.assert_allclose(rewards, nats.sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(mse, ((TARGET - p) ** 2).mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("sd", [1.0, 0.5])
def test_gaussian_is_the_log_of_its_normal_law(sd):
    nats = -0.5 * ((TARGET - OUT) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
    rewards, mse = reward(Reconstruction("gaussian", sd))
    np.testing.assert_allclose(rewards, nats.sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(mse, ((TARGET - OUT) ** 2).mean((1, 2)), rtol=1e-5)


def test_wrong_values_are_refused():
    with pytest.raises(UserError, match="'bernoulli' or 'gaussian'"):
        Reconstruction("poisson")
    with pytest.raises(UserError, match="sd must be positive"):
        Reconstruction("gaussian", 0.0)
    with pytest.raises(UserError, match=r"shape of its input, \(2, 2, 1\), got \(2, 10\)"):
        Reconstruction()(lambda x: jnp.ones((2, 10)), {"image": jnp.asarray(TARGET)})

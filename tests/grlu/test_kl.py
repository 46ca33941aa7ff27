"""Divergences against values computed by hand, and the warm-up of their coefficient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grlu
from grlu import kl


def test_by_hand():
    p, q = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.25, 0.75]]))
    found = {name: kl.divergence(name, p, q, jnp.array([0]))[0] for name in ("exact", *kl.SAMPLED)}
    log = np.log(2)
    assert found["exact"] == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3), rel=1e-5)
    assert found["k1"] == pytest.approx(log)
    assert found["k2"] == pytest.approx(log**2 / 2)
    assert found["k3"] == pytest.approx(0.5 - 1 + log)


@pytest.mark.parametrize("name", ["exact", "k1", "k2", "k3"])
def test_divergence_of_a_policy_from_itself_is_zero(name):
    log_p = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (4, 5, 7)))
    tokens = jnp.zeros((4, 5), jnp.int32)
    np.testing.assert_array_equal(kl.divergence(name, log_p, log_p, tokens), 0)


def test_unsound_estimators_are_refused():
    for name in ("exact", "k1"):
        kl.require_sound(name, "reward")
    for name in ("exact", "k2", "k3"):
        kl.require_sound(name, "loss")
    with pytest.raises(grlu.UserError, match="zero on average: use exact, k2 or k3"):
        kl.require_sound("k1", "loss")
    for name in ("k2", "k3"):
        with pytest.raises(grlu.UserError, match=f"{name} in the reward .* vanishes near"):
            kl.require_sound(name, "reward")


def test_coefficient_warms_up_from_zero():
    seen = jnp.array([0.0, 50.0, 100.0, 1000.0])
    np.testing.assert_allclose(kl.coefficient(0.2, seen, 100), [0, 0.1, 0.2, 0.2], rtol=1e-6)
    assert kl.coefficient(0.2, jnp.float32(0), 0) == pytest.approx(0.2)

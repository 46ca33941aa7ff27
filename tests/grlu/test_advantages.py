"""Advantages against values computed by hand and independent oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grlu
from grlu.advantages import ADVANTAGES, gae, returns, same, whitened

REWARDS = jnp.array([[1.0, 0.0, 0.0], [2.0, 4.0, 6.0]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [[1, 0, 0], [2, 4, 6]]),
        ("mean", [[-7 / 6, -13 / 6, -13 / 6], [-1 / 6, 11 / 6, 23 / 6]]),
        ("leave_one_out", [[1, -0.5, -0.5], [-3, 0, 3]]),
        ("group_mean", [[2 / 3, -1 / 3, -1 / 3], [-2, 0, 2]]),
        ("group_mean_std", [[1.15450, -0.57725, -0.57725], [-0.99995, 0, 0.99995]]),
    ],
)
def test_by_hand(name, expected):
    np.testing.assert_allclose(ADVANTAGES[name](REWARDS), expected, rtol=1e-4)
    # Baselines of rewards per token are taken separately for each token.
    tokens = jnp.stack([REWARDS, 0 * REWARDS], -1)
    both = ADVANTAGES[name](tokens)
    np.testing.assert_allclose(both[..., 0], expected, rtol=1e-4)
    np.testing.assert_array_equal(both[..., 1], 0)


@pytest.mark.parametrize("name", [name for name in ADVANTAGES if name != "none"])
@pytest.mark.parametrize("reward", [0.1, -7.3, 1e6])
def test_equal_rewards_give_exactly_zero(name, reward):
    rewards = jnp.full((5, 7), reward)
    np.testing.assert_array_equal(ADVANTAGES[name](rewards), 0)


@pytest.mark.parametrize("name", ["leave_one_out", "group_mean_std"])
def test_one_sample_is_refused(name):
    with pytest.raises(grlu.UserError, match=f"{name!r} needs at least 2 samples"):
        ADVANTAGES[name](jnp.ones((3, 1)))


def test_returns():
    rewards = jnp.array([[1.0, 2.0, 4.0]])
    np.testing.assert_array_equal(returns(rewards), [[7, 6, 4]])
    np.testing.assert_array_equal(returns(rewards, 0.5), [[3, 4, 4]])
    np.testing.assert_array_equal(returns(rewards, 0.0), rewards)


def oracle(rewards, values, length, discount, decay):
    """Compute equation 16 of arXiv:1506.02438 as a double sum over one completion."""
    state = [*values[:length], 0.0]
    delta = [rewards[t] + discount * state[t + 1] - state[t] for t in range(length)]
    found = [
        sum((discount * decay) ** (s - t) * delta[s] for s in range(t, length))
        for t in range(length)
    ]
    return found + [0.0] * (len(rewards) - length)


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (1.0, 0.0)])
def test_gae_is_the_double_sum(discount, decay):
    rewards, values = jax.random.normal(jax.random.key(0), (2, 3, 5))
    lengths = np.array([5, 3, 1])
    mask = jnp.asarray(np.arange(5)[None] < lengths[:, None], jnp.float32)
    found, targets = gae(rewards, values, mask, discount=discount, decay=decay)
    expected = [
        oracle(*both, n, discount, decay)
        for *both, n in zip(np.asarray(rewards), np.asarray(values), lengths, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(targets, found + values * mask, rtol=1e-5, atol=1e-6)
    if decay == discount == 1.0:
        np.testing.assert_allclose(targets, returns(rewards * mask) * mask, rtol=1e-5, atol=1e-6)


def test_whitened():
    mask = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    found = np.asarray(whitened(jax.random.normal(jax.random.key(0), (2, 3)) * 5 + 3, mask))
    kept = found[np.asarray(mask) > 0]
    assert kept.mean() == pytest.approx(0, abs=1e-6)
    assert kept.std() == pytest.approx(1, abs=1e-3)
    assert found[0, 2] == 0


def test_same():
    rewards = jnp.array([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 0.0]]])
    np.testing.assert_array_equal(same(rewards), [True, False])
    np.testing.assert_array_equal(same(rewards[..., 0]), [True, True])

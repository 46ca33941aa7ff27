"""Policy losses against values computed by hand; parts of a batch sum to the full loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grlu import preferences
from grlu.policy_losses import (
    clipped,
    clipped_value,
    entropy,
    ratios,
    reinforce,
    token_weights,
)

MASK = jnp.array([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]])


def test_weights_by_hand():
    fifth = jnp.where(MASK > 0, 0.2, 0.0)
    np.testing.assert_allclose(token_weights(MASK, "token"), fifth)
    sequence = [[0.125] * 4, [0.5, 0, 0, 0]]
    np.testing.assert_allclose(token_weights(MASK, "sequence"), sequence)
    np.testing.assert_allclose(token_weights(MASK, "constant"), MASK / 8)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_empty_mask_has_zero_weights(aggregation):
    np.testing.assert_array_equal(token_weights(0 * MASK, aggregation), 0)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "held"),
    [
        (1.0, 2.0, -2.0, -2.0, False),
        (1.1, 2.0, -2.2, -2.0, False),
        (1.4, 2.0, -2.6, 0.0, True),  # no gain above 1 + .3
        (0.5, 2.0, -1.0, -2.0, False),
        (0.5, -2.0, 1.6, 0.0, True),  # no gain below 1 - .2
        (1.4, -2.0, 2.8, 2.0, False),
    ],
)
def test_clip_by_hand(ratio, advantage, loss, slope, held):
    def of(ratio):
        return clipped(ratio, jnp.float32(advantage), 0.2, 0.3)

    (found, was_held), gradient = jax.value_and_grad(of, has_aux=True)(jnp.float32(ratio))
    assert found == pytest.approx(loss)
    assert gradient == pytest.approx(slope)
    assert was_held == held


def test_old_policy_has_ratio_one_and_the_gradient_of_reinforce():
    new, advantages = jax.random.normal(jax.random.key(0), (2, 2, 4))
    for level in ("token", "sequence"):
        np.testing.assert_array_equal(ratios(new, new, MASK, level), 1)

    def ppo(x):
        return (clipped(ratios(x, new, MASK), advantages, 0.2, 0.2)[0] * MASK).sum()

    def simple(x):
        return (reinforce(x, advantages) * MASK).sum()

    np.testing.assert_allclose(jax.grad(ppo)(new), jax.grad(simple)(new), rtol=1e-6)


def test_sequence_ratio_is_a_geometric_mean():
    old = jnp.zeros((2, 4))
    new = jnp.log(jnp.array([[2.0, 8.0, 1.0, 1.0], [3.0, 9.0, 9.0, 9.0]]))
    found = ratios(new, old, MASK, "sequence")
    np.testing.assert_allclose(found, [[2.0] * 4, [3.0] * 4], rtol=1e-6)
    np.testing.assert_allclose(ratios(new, old, MASK)[1], [3, 1, 1, 1], rtol=1e-6)


def test_value_loss_by_hand():
    new, old, target = jnp.array([3.0, 1.1]), jnp.array([1.0, 1.0]), jnp.array([3.0, 2.0])
    np.testing.assert_allclose(clipped_value(new, old, target, None), [0, 0.405], rtol=1e-5)
    # Within .5 of the old value: 1.5 instead of 3, an error of 1.5.
    np.testing.assert_allclose(clipped_value(new, old, target, 0.5), [1.125, 0.405], rtol=1e-5)


def test_entropy():
    flat = jnp.full((2, 8), -jnp.log(8.0))
    np.testing.assert_allclose(entropy(flat), np.log(8), rtol=1e-6)


def test_bradley_terry_by_hand():
    score = jnp.array([0.0, np.log(3.0)], jnp.float32)
    found = preferences.bradley_terry(score, jnp.zeros(2))
    np.testing.assert_allclose(found, -np.log([0.5, 0.75]), rtol=1e-6)


def test_dpo_by_hand():
    margin = preferences.dpo_margin(*(jnp.array([x]) for x in (-1.0, -2.0, -3.0, -1.0)))
    np.testing.assert_allclose(margin, [3.0])
    np.testing.assert_allclose(preferences.dpo(margin, 0.5), np.log1p(np.exp(-1.5)), rtol=1e-6)

"""Gradients of the KL penalty off-policy, against brute force over all 27 completions.

Three tokens, three steps; policies are tables of logits for each of the 13 prefixes. Completions
are sampled by one policy and the gradient is taken at another, as in the second update from a
rollout. Expectations are sums over all completions, so nothing here is sampled.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grlu import kl
from grlu.advantages import returns
from grlu.policy_losses import clipped, ratios

V, H = 3, 3
ALL = np.array(list(itertools.product(range(V), repeat=H)))
# Row of the table for the prefix before each token: lengths 0, 1, 2.
STATES = np.stack([0 * ALL[:, 0], 1 + ALL[:, 0], 1 + V + V * ALL[:, 0] + ALL[:, 1]], 1)
SAMPLER, CURRENT, REFERENCE = jax.random.normal(jax.random.key(0), (3, 13, V))


def log_policy(logits):
    """Return log-probabilities before each token of all completions, (27, H, V)."""
    return jax.nn.log_softmax(logits)[STATES]


def chosen(logits):
    return kl.chosen(log_policy(logits), jnp.asarray(ALL))


def masked(ends):
    """Return 1 up to and including the first token 2, or everywhere."""
    before = np.cumsum(ALL == 2, 1) - (ALL == 2)
    return jnp.asarray(before == 0 if ends else np.ones_like(ALL), jnp.float32)


def visited(ends):
    """Return each completion's probability under the sampling policy, at its tokens, (27, H)."""
    return jnp.exp(chosen(SAMPLER).sum(1))[:, None] * masked(ends)


def estimate(name, logits, ends):
    """Return the KL term of the loss, per token of each completion, (27, H)."""
    ratio = ratios(chosen(logits), chosen(SAMPLER), masked(ends))
    p, q = log_policy(logits), log_policy(REFERENCE)
    return kl.divergence(name, p, q, jnp.asarray(ALL), ratio)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("name", ["exact", "k2", "k3"])
def test_the_gradient_in_the_loss_is_unbiased(name, ends):
    """Check that `exact` and `k2` have the gradient of KL(p || q), and `k3` that of KL(q || p)."""

    def expected(logits):
        pair = (log_policy(logits), log_policy(REFERENCE))
        return (visited(ends) * kl.exact(*(pair[::-1] if name == "k3" else pair))).sum()

    found = jax.grad(lambda logits: (visited(ends) * estimate(name, logits, ends)).sum())(CURRENT)
    np.testing.assert_allclose(found, jax.grad(expected)(CURRENT), atol=1e-6)


@pytest.mark.parametrize("name", ["exact", "k1", "k3"])
def test_the_value_is_unbiased(name):
    expected = (visited(True) * kl.exact(log_policy(CURRENT), log_policy(REFERENCE))).sum()
    found = (visited(True) * estimate(name, CURRENT, True)).sum()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def surrogate(name, logits, to_come, ends):
    """Return PPO's loss without clipping, with the KL term that `exact` adds."""
    ratio = ratios(chosen(logits), chosen(SAMPLER), masked(ends))
    loss = clipped(ratio, to_come, np.inf, np.inf)[0]
    if kl.in_loss(name, "reward"):
        loss = loss + estimate(name, logits, ends)
    return (visited(ends) * loss).sum()


@pytest.mark.parametrize("ends", [False, True])
def test_exact_and_k1_in_the_reward_differ_by_the_kl_from_the_sampler(ends):
    """Compare at the visited states; later rewards are the same for both."""
    log_q, tokens = log_policy(REFERENCE), jnp.asarray(ALL)
    gradients = {}
    for name in ("exact", "k1"):
        reward = -kl.divergence(name, log_policy(SAMPLER), log_q, tokens) * masked(ends)
        gradients[name] = jax.grad(lambda x, n=name, r=reward: surrogate(n, x, returns(r), ends))(
            CURRENT
        )

    def moved(logits):
        return (visited(ends) * kl.exact(log_policy(logits), log_policy(SAMPLER))).sum()

    difference = gradients["exact"] - gradients["k1"]
    np.testing.assert_allclose(difference, jax.grad(moved)(CURRENT), atol=1e-6)


@pytest.mark.parametrize("ends", [False, True])
def test_exact_in_the_reward_is_unbiased_at_every_step(ends):
    """Sample one token by the current policy and the rest by the sampler, from each state."""
    p, q = (np.asarray(log_policy(x), np.float64) for x in (SAMPLER, REFERENCE))
    local = (np.exp(p) * (p - q)).sum(-1) * np.asarray(masked(ends))
    weight = np.asarray(visited(ends), np.float64)
    chance, cost = np.zeros((2, 13, V))  # Expected divergence after a prefix and its next token.
    later = np.cumsum(local[:, ::-1], 1)[:, ::-1] - local
    np.add.at(chance, (STATES, ALL), weight)
    np.add.at(cost, (STATES, ALL), weight * later)
    cost = jnp.asarray(cost / np.maximum(chance, 1e-30), jnp.float32)[STATES]

    def expected(logits):
        log_p = log_policy(logits)
        each = kl.exact(log_p, log_policy(REFERENCE)) + (jnp.exp(log_p) * cost).sum(-1)
        return (visited(ends) * each).sum()

    to_come = returns(-jnp.asarray(local, jnp.float32))
    found = jax.grad(lambda x: surrogate("exact", x, to_come, ends))(CURRENT)
    np.testing.assert_allclose(found, jax.grad(expected)(CURRENT), atol=1e-6)

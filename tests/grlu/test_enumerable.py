"""Sampled policy gradients against brute force over all 27 completions.

Three tokens, three steps, random rewards; the policy is a table of logits for each of the 13
prefixes. Each gradient is averaged over many independent groups of samples, and must agree with
the sum over all completions within 4 standard errors. If completions end early, at token 2,
tokens sampled after it must not count.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grlu import kl
from grlu.advantages import ADVANTAGES, gae, returns
from grlu.policy_losses import clipped, ratios, reinforce, token_weights

V, H = 3, 3
ALL = np.array(list(itertools.product(range(V), repeat=H)))
# Row of the table for the prefix before each token: lengths 0, 1, 2.
STATES = np.stack([0 * ALL[:, 0], 1 + ALL[:, 0], 1 + V + V * ALL[:, 0] + ALL[:, 1]], 1)
LOGITS, REFERENCE = jax.random.normal(jax.random.key(0), (2, 13, V))
VALUES = jax.random.normal(jax.random.key(1), (13,))


def masked(ends):
    """Return 1 up to and including the first token 2, or everywhere."""
    before = np.cumsum(ALL == 2, 1) - (ALL == 2)
    return jnp.asarray(before == 0 if ends else np.ones_like(ALL), jnp.float32)


def rewarded(ends):
    """Return a random reward per token and prefix, 0 after the end."""
    rows = 3 * STATES + ALL  # one per prefix and next token
    return jax.random.normal(jax.random.key(2), (39,))[rows] * masked(ends)


def log_policy(logits):
    """Return log-probabilities before each token of all completions, (27, H, V)."""
    return jax.nn.log_softmax(logits)[STATES]


def drawn(log_p, tokens):
    return jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0]


def likelihood(logits):
    return jnp.exp(drawn(log_policy(logits), jnp.asarray(ALL)).sum(1))


def groups(count, samples):
    """Sample indices of completions from the policy, (count, samples)."""
    return jax.random.choice(jax.random.key(3), len(ALL), (count, samples), p=likelihood(LOGITS))


def assert_agree(gradients, expected):
    """Check that gradients (count, ...) of independent samples have the mean `expected`."""
    mean = gradients.mean(0)
    error = gradients.std(0, ddof=1) / np.sqrt(len(gradients))
    assert (
        np.abs(np.asarray(expected)).max() > 20 * np.asarray(error).max()
    )  # The check is sensitive enough.
    assert np.abs((mean - expected) / jnp.maximum(error, 1e-7)).max() < 4


def sampled(loss, count, samples):
    """Return the gradient of -`loss(logits, indices)` for each of many groups."""
    gradient = jax.jit(jax.vmap(jax.grad(lambda logits, chosen: -loss(logits, chosen)), (None, 0)))
    return gradient(LOGITS, groups(count, samples))


def true_gradient(ends):
    """Return the gradient of the expected reward."""
    rewards = rewarded(ends).sum(1)
    return jax.grad(lambda logits: likelihood(logits) @ rewards)(LOGITS)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(
    ("name", "samples", "scale"),
    [
        ("none", 1, 1),
        ("mean", 4, 3 / 4),  # The batch is one prompt.
        ("leave_one_out", 4, 1),
        ("group_mean", 4, 3 / 4),
    ],
)
@pytest.mark.parametrize("per_token", [False, True])
def test_reinforce(name, samples, scale, ends, per_token):
    """Check rewards at the end, and rewards per token with returns."""
    mask, rewards = masked(ends), rewarded(ends)

    def loss(logits, chosen):
        log_probs = drawn(log_policy(logits)[chosen], jnp.asarray(ALL)[chosen])
        if per_token:
            advantages = ADVANTAGES[name](returns(rewards[chosen])[None])[0]
        else:
            advantages = ADVANTAGES[name](rewards[chosen].sum(1)[None])[0][:, None]
        weights = token_weights(mask[chosen], "constant") * H
        return (weights * reinforce(log_probs, advantages)).sum()

    assert_agree(sampled(loss, 40_000, samples), scale * true_gradient(ends))


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("ends", [False, True])
def test_grpo(aggregation, ends):
    """Check GRPO, which depends on the group, over all 19,683 groups of three."""
    mask, rewards = masked(ends), rewarded(ends).sum(1)

    def loss(logits, chosen):
        log_probs = drawn(log_policy(logits)[chosen], jnp.asarray(ALL)[chosen])
        advantages = ADVANTAGES["group_mean_std"](rewards[chosen][None])[0][:, None]
        ratio = ratios(log_probs, log_probs, mask[chosen])
        weights = token_weights(mask[chosen], aggregation)
        return (weights * clipped(ratio, advantages, 0.2, 0.2)[0]).sum()

    every = np.array(list(itertools.product(range(len(ALL)), repeat=3)))
    paid = np.asarray(rewards, np.float64)[every]
    advantages = (paid - paid.mean(1, keepdims=True)) / (paid.std(1, ddof=1, keepdims=True) + 1e-4)
    kept = np.asarray(mask)[every]
    weights = {
        "token": kept / kept.sum((1, 2), keepdims=True),
        "sequence": kept / kept.sum(2, keepdims=True) / 3,
        "constant": kept / (3 * H),
    }[aggregation]
    chance = np.asarray(likelihood(LOGITS))[every].prod(1)
    # Mean advantage of each token of each completion over all groups.
    worth = np.zeros(ALL.shape)
    np.add.at(worth, every, chance[:, None, None] * advantages[:, :, None] * weights)

    def expected(logits):
        return (drawn(log_policy(logits), jnp.asarray(ALL)) * worth).sum()

    assert_agree(sampled(loss, 60_000, 3), jax.grad(expected)(LOGITS))


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_first_step_of_ppo_has_the_policy_gradient(decay, ends):
    mask, rewards = masked(ends), rewarded(ends)
    advantages, _ = gae(rewards, VALUES[STATES], mask, discount=1.0, decay=decay)

    def loss(logits, chosen):
        log_probs = drawn(log_policy(logits)[chosen], jnp.asarray(ALL)[chosen])
        ratio = ratios(log_probs, log_probs, mask[chosen])
        weights = token_weights(mask[chosen], "constant") * H
        return (weights * clipped(ratio, advantages[chosen], 0.2, 0.2)[0]).sum()

    def expected(logits):
        log_probs = drawn(log_policy(logits), jnp.asarray(ALL)) * mask
        return (likelihood(LOGITS)[:, None] * log_probs * advantages).sum()

    gradient = jax.grad(expected)(LOGITS)
    if decay == 1:  # Any critic works: its error is a baseline.
        np.testing.assert_allclose(gradient, true_gradient(ends), atol=1e-6)
    assert_agree(sampled(loss, 60_000, 1), gradient)


def divergences(logits, ends, q_first=False):
    """Return the KL at the states before each token, weighted by the sampling policy's visits."""
    p, q = log_policy(logits), log_policy(REFERENCE)
    each = kl.exact(q, p) if q_first else kl.exact(p, q)
    return (likelihood(LOGITS)[:, None] * masked(ends) * each).sum()


def sequence_divergence(logits, ends):
    """Return the KL between the distributions over completions."""
    p, q = (drawn(log_policy(x), jnp.asarray(ALL)) * masked(ends) for x in (logits, REFERENCE))
    return (likelihood(logits)[:, None] * (p - q)).sum()


def estimate(name, logits, chosen, ends):
    p, q = log_policy(logits)[chosen], log_policy(REFERENCE)[chosen]
    return (kl.divergence(name, p, q, jnp.asarray(ALL)[chosen]) * masked(ends)[chosen]).sum()


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("name", ["exact", "k1", "k2", "k3"])
def test_divergence_equals_brute_force(name, ends):
    values = jax.vmap(lambda chosen: estimate(name, LOGITS, chosen, ends))(groups(40_000, 1))
    if name == "k2":
        p, q = (drawn(log_policy(x), jnp.asarray(ALL)) for x in (LOGITS, REFERENCE))
        each = (masked(ends) * (p - q) ** 2 / 2).sum(1)
        expected = likelihood(LOGITS) @ each
    else:
        expected = sequence_divergence(LOGITS, ends)
        np.testing.assert_allclose(divergences(LOGITS, ends), expected, rtol=1e-5)
    assert_agree(values, expected)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("name", ["exact", "k2", "k3"])
def test_gradient_of_a_divergence_in_the_loss_equals_brute_force(name, ends):
    def loss(logits, chosen):
        return -estimate(name, logits, chosen, ends)

    expected = jax.grad(lambda logits: divergences(logits, ends, q_first=name == "k3"))(LOGITS)
    assert_agree(sampled(loss, 60_000, 1), expected)


def test_k1_in_the_loss_has_zero_mean_gradient():
    gradients = sampled(lambda logits, chosen: -estimate("k1", logits, chosen, True), 60_000, 1)
    error = gradients.std(0) / np.sqrt(len(gradients))
    assert np.abs(gradients.mean(0) / jnp.maximum(error, 1e-7)).max() < 4


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("name", ["exact", "k1"])
def test_gradient_in_the_reward_is_that_of_sequences(name, ends):
    mask = masked(ends)
    log_p, log_q = log_policy(LOGITS), log_policy(REFERENCE)
    to_come = returns(-kl.divergence(name, log_p, log_q, jnp.asarray(ALL)) * mask)

    def loss(logits, chosen):
        log_probs = drawn(log_policy(logits)[chosen], jnp.asarray(ALL)[chosen])
        paid = (mask[chosen] * reinforce(log_probs, to_come[chosen])).sum()
        return paid + kl.in_loss(name, "reward") * estimate(name, logits, chosen, ends)

    expected = jax.grad(lambda logits: -sequence_divergence(logits, ends))(LOGITS)
    assert_agree(sampled(loss, 60_000, 1), expected)


@pytest.mark.parametrize("name", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_have_no_gradient_near_the_reference(name):
    near = REFERENCE + 0.05 * (LOGITS - REFERENCE)
    p, q = (drawn(log_policy(x), jnp.asarray(ALL)) for x in (near, REFERENCE))
    to_come = returns(kl.SAMPLED[name](p, q))

    def paid(logits):
        chance = jax.lax.stop_gradient(likelihood(logits))[:, None]
        return (chance * to_come * drawn(log_policy(logits), jnp.asarray(ALL))).sum()

    def norm(of):
        return np.linalg.norm(jax.grad(of)(near))

    assert norm(paid) < 0.1 * norm(lambda logits: sequence_divergence(logits, ends=False))

"""Sampled policy gradients against brute force over all 27 completions.

Three tokens, three steps, random rewards; the policy is a table of logits for each of the 13
prefixes. The mean of each estimate over all groups of samples, weighted by their likelihood, must
equal the sum over all completions. If completions end early, at token 2, tokens sampled after it
must not count.
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
LOGITS, REFERENCE = map(jnp.asarray, np.random.default_rng(0).standard_normal((2, 13, V), "f"))
VALUES = np.random.default_rng(1).standard_normal(13, "f")


def masked(ends):
    """Return 1 up to and including the first token 2, or everywhere."""
    before = np.cumsum(ALL == 2, 1) - (ALL == 2)
    return jnp.asarray(before == 0 if ends else np.ones_like(ALL), jnp.float32)


def rewarded(ends):
    """Return a random reward per token and prefix, 0 after the end."""
    rows = 3 * STATES + ALL  # one per prefix and next token
    return np.random.default_rng(2).standard_normal(39, "f")[rows] * masked(ends)


def log_policy(logits):
    """Return log-probabilities before each token of all completions, (27, H, V)."""
    return jax.nn.log_softmax(logits)[STATES]


def drawn(log_p, tokens):
    return jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0]


def likelihood(logits):
    return jnp.exp(drawn(log_policy(logits), jnp.asarray(ALL)).sum(1))


def mean(estimate, logits, samples):
    """Return the mean of `estimate(logits, indices)` over all groups of sampled completions."""
    every = jnp.asarray(np.indices((len(ALL),) * samples).reshape(samples, -1).T)
    chance = jax.lax.stop_gradient(likelihood(logits))[every].prod(1)
    return chance @ jax.vmap(lambda chosen: estimate(logits, chosen))(every)


def sampled(loss, samples):
    """Return the mean gradient of -`loss(logits, indices)` over all groups."""
    return jax.jit(jax.grad(lambda logits: -mean(loss, logits, samples)))(LOGITS)


def assert_agree(found, expected):
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def true_gradient(ends):
    """Return the gradient of the expected reward."""
    rewards = rewarded(ends).sum(1)
    return jax.jit(jax.grad(lambda logits: likelihood(logits) @ rewards))(LOGITS)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize(
    ("name", "samples", "scale"),
    [
        ("none", 1, 1),
        ("mean", 3, 2 / 3),  # The batch is one prompt.
        ("leave_one_out", 3, 1),
        ("group_mean", 3, 2 / 3),
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

    assert_agree(sampled(loss, samples), scale * true_gradient(ends))


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

    assert_agree(sampled(loss, 3), jax.jit(jax.grad(expected))(LOGITS))


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

    gradient = jax.jit(jax.grad(expected))(LOGITS)
    if decay == 1:  # Any critic works: its error is a baseline.
        np.testing.assert_allclose(gradient, true_gradient(ends), atol=1e-6)
    assert_agree(sampled(loss, 1), gradient)


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
    @jax.jit
    def found(logits):
        p, q = (drawn(log_policy(x), jnp.asarray(ALL)) for x in (logits, REFERENCE))
        squares = likelihood(logits) @ (masked(ends) * (p - q) ** 2 / 2).sum(1)
        own = mean(lambda *args: estimate(name, *args, ends), logits, 1)
        return own, squares, sequence_divergence(logits, ends), divergences(logits, ends)

    value, squares, expected, sums = found(LOGITS)
    if name == "k2":
        expected = squares
    else:
        np.testing.assert_allclose(sums, expected, rtol=1e-5)
    assert_agree(value, expected)


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("name", ["exact", "k2", "k3"])
def test_gradient_of_a_divergence_in_the_loss_equals_brute_force(name, ends):
    def loss(logits, chosen):
        return -estimate(name, logits, chosen, ends)

    expected = jax.jit(jax.grad(lambda x: divergences(x, ends, q_first=name == "k3")))(LOGITS)
    assert_agree(sampled(loss, 1), expected)


def test_k1_in_the_loss_has_zero_mean_gradient():
    gradient = sampled(lambda logits, chosen: -estimate("k1", logits, chosen, True), 1)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


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

    expected = jax.jit(jax.grad(lambda logits: -sequence_divergence(logits, ends)))(LOGITS)
    assert_agree(sampled(loss, 1), expected)


@pytest.mark.parametrize("name", ["k2", "k3"])
def test_k2_and_k3_in_the_reward_have_no_gradient_near_the_reference(name):
    near = REFERENCE + 0.05 * (LOGITS - REFERENCE)
    p, q = (drawn(log_policy(x), jnp.asarray(ALL)) for x in (near, REFERENCE))
    to_come = returns(kl.SAMPLED[name](p, q))

    def paid(logits):
        chance = jax.lax.stop_gradient(likelihood(logits))[:, None]
        return (chance * to_come * drawn(log_policy(logits), jnp.asarray(ALL))).sum()

    def norm(of):
        return np.linalg.norm(jax.jit(jax.grad(of))(near))

    assert norm(paid) < 0.1 * norm(lambda logits: sequence_divergence(logits, ends=False))

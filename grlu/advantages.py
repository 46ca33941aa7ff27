"""Advantages: how much better an action was than expected, from rewards alone or with a critic.

Rewards of K samples for each of B prompts have the shape (B, K), one number a completion, or
(B, K, T), one a token. Baselines are taken over samples, for each token by itself, and equal
rewards give advantages of exactly zero. What follows the end of a completion counts as 0.

- No baseline, mean: R. Williams, "Simple statistical gradient-following algorithms" (1992).
- Leave-one-out: W. Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!" (2019).
- Group mean, over the deviation: Z. Shao et al., "DeepSeekMath" (2024); without it: Z. Liu et al.,
  "Understanding R1-Zero-like training" (2025).
- Generalised advantage estimation: J. Schulman et al., arXiv:1506.02438, equation 16.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from grlu.errors import UserError

# Keeps rewards that hardly differ from being blown up; in units of the reward.
_SMALL = 1e-4


def no_baseline(rewards: jax.Array) -> jax.Array:
    """The rewards as they are: unbiased, and noisy."""
    return rewards


def batch_mean(rewards: jax.Array) -> jax.Array:
    """Rewards less their mean over the batch: (1 - 1 / (B K)) times the gradient, in expectation.

    Prompts must be as hard as each other for this to be a good baseline.
    """
    shifted = rewards - rewards[:1, :1]  # Exactly 0 where all are equal.
    return shifted - shifted.mean((0, 1), keepdims=True)


def group_mean(rewards: jax.Array) -> jax.Array:
    """Rewards less the mean of their prompt's K: (1 - 1 / K) times the gradient, in expectation."""
    shifted = rewards - rewards[:, :1]
    return shifted - shifted.mean(1, keepdims=True)


def leave_one_out(rewards: jax.Array) -> jax.Array:
    """Rewards less the mean of the prompt's other K - 1: unbiased.

    Raises:
        UserError: if there is only one sample a prompt.
    """
    samples = _several(rewards, "leave_one_out")
    return group_mean(rewards) * (samples / (samples - 1))


def group_mean_std(rewards: jax.Array) -> jax.Array:
    """`group_mean` over the sample standard deviation of the prompt's K.

    Prompts that are almost always solved, or almost never, then weigh as much as the others.

    Raises:
        UserError: if there is only one sample a prompt.
    """
    samples = _several(rewards, "group_mean_std")
    centred = group_mean(rewards)
    variance = jnp.square(centred).sum(1, keepdims=True) / (samples - 1)
    return centred / (jnp.sqrt(variance) + _SMALL)


ADVANTAGES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "none": no_baseline,
    "mean": batch_mean,
    "leave_one_out": leave_one_out,
    "group_mean": group_mean,
    "group_mean_std": group_mean_std,
}


def returns(rewards: jax.Array, discount: float = 1.0) -> jax.Array:
    """What is still to come, the sum over s >= t of discount^(s - t) r_s, over the last axis.

    With a discount of 0 each token is paid for itself alone.
    """

    def back(later: jax.Array, reward: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = reward + discount * later
        return total, total

    steps = jnp.moveaxis(rewards, -1, 0)
    totals = jax.lax.scan(back, jnp.zeros_like(steps[0]), steps, reverse=True)[1]
    return jnp.moveaxis(totals, 0, -1)


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, *, discount: float, decay: float
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimation, and what the critic is to learn.

    A_t = delta_t + discount * decay * A_(t+1), delta_t = r_t + discount * V_(t+1) - V_t. The end of
    a completion, at its end token or at the horizon, is worth nothing.

    Args:
        rewards: per token, (N, T).
        values: the critic's, of the state before each token, (N, T).
        mask: 1 at the tokens of the completion, its end token included, (N, T).
        discount: gamma.
        decay: lambda; 1 gives the return less the value, 0 one step's temporal difference.

    Returns:
        Advantages and targets of the values, (N, T), both 0 outside the mask.
    """
    rewards, values = rewards * mask, values * mask
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    advantages = returns(rewards + discount * following - values, discount * decay) * mask
    return advantages, advantages + values


def whitened(advantages: jax.Array, mask: jax.Array) -> jax.Array:
    """Advantages shifted and scaled to mean 0 and deviation 1 over the mask's tokens."""
    count = jnp.maximum(mask.sum(), 1)
    centred = (advantages - (advantages * mask).sum() / count) * mask
    return centred / (jnp.sqrt(jnp.square(centred).sum() / count) + _SMALL)


def same(rewards: jax.Array) -> jax.Array:
    """Which prompts' samples were all paid alike, (B,), so that they teach nothing."""
    equal = (rewards == rewards[:, :1]).reshape(len(rewards), -1)
    return equal.all(1)


def _several(rewards: jax.Array, name: str) -> int:
    if rewards.shape[1] < 2:
        raise UserError(f"the advantage {name!r} needs at least 2 samples a prompt, got 1")
    return rewards.shape[1]

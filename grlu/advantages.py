"""Advantages of actions over their expected reward, from rewards alone or with a critic.

Rewards of K samples for each of B prompts have the shape (B, K), one number per completion, or
(B, K, T), one per token. Baselines are taken over samples, separately for each token, and equal
rewards give advantages of exactly zero. Tokens after the end of a completion count as 0.

- No baseline, mean: R. Williams, "Simple statistical gradient-following algorithms" (1992).
- Leave-one-out: W. Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!" (2019).
- Group mean, divided by the standard deviation: Z. Shao et al., "DeepSeekMath" (2024); without the
  division: Z. Liu et al., "Understanding R1-Zero-like training" (2025).
- Generalised advantage estimation: J. Schulman et al., arXiv:1506.02438, equation 16.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from grlu.errors import UserError

# Avoids amplifying tiny differences between rewards; in units of the reward.
_SMALL = 1e-4


def no_baseline(rewards: jax.Array) -> jax.Array:
    """Return the rewards unchanged: unbiased but noisy."""
    return rewards


def batch_mean(rewards: jax.Array) -> jax.Array:
    """Subtract the batch mean: (1 - 1 / (B K)) times the gradient, in expectation.

    The baseline is good only if all prompts are equally difficult.
    """
    shifted = rewards - rewards[:1, :1]  # Exactly 0 if all are equal.
    return shifted - shifted.mean((0, 1), keepdims=True)


def group_mean(rewards: jax.Array) -> jax.Array:
    """Subtract the mean of the prompt's K: (1 - 1 / K) times the gradient, in expectation."""
    shifted = rewards - rewards[:, :1]
    return shifted - shifted.mean(1, keepdims=True)


def leave_one_out(rewards: jax.Array) -> jax.Array:
    """Subtract the mean of the prompt's other K - 1 rewards: unbiased.

    Raises:
        UserError: if there is only one sample per prompt.
    """
    samples = _require_several(rewards, "leave_one_out")
    return group_mean(rewards) * (samples / (samples - 1))


def group_mean_std(rewards: jax.Array) -> jax.Array:
    """Divide `group_mean` by the sample standard deviation of the prompt's K rewards.

    Prompts that are almost always or almost never solved then weigh as much as all others.

    Raises:
        UserError: if there is only one sample per prompt.
    """
    samples = _require_several(rewards, "group_mean_std")
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
    """Return the discounted returns: the sum over s >= t of discount^(s - t) r_s, on the last axis.

    With a discount of 0 the return of each token is its own reward.
    """

    def step(later: jax.Array, reward: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = reward + discount * later
        return total, total

    steps = jnp.moveaxis(rewards, -1, 0)
    totals = jax.lax.scan(step, jnp.zeros_like(steps[0]), steps, reverse=True)[1]
    return jnp.moveaxis(totals, 0, -1)


def gae(
    rewards: jax.Array, values: jax.Array, mask: jax.Array, *, discount: float, decay: float
) -> tuple[jax.Array, jax.Array]:
    """Return generalised advantage estimates, and the critic's targets.

    A_t = delta_t + discount * decay * A_(t+1), delta_t = r_t + discount * V_(t+1) - V_t. The state
    after a completion's end-of-sequence token, or after the horizon, has the value 0.

    Args:
        rewards: reward per token, (N, T).
        values: the critic's value of the state before each token, (N, T).
        mask: 1 at the completion's tokens, including its end-of-sequence token, (N, T).
        discount: gamma.
        decay: lambda; 1 gives the return minus the value, 0 the one-step temporal difference.

    Returns:
        Advantages and value targets, (N, T), both 0 outside the mask.
    """
    rewards, values = rewards * mask, values * mask
    following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    advantages = returns(rewards + discount * following - values, discount * decay) * mask
    return advantages, advantages + values


def whitened(advantages: jax.Array, mask: jax.Array) -> jax.Array:
    """Shift and scale advantages to mean 0 and standard deviation 1 over the mask's tokens."""
    count = jnp.maximum(mask.sum(), 1)
    centred = (advantages - (advantages * mask).sum() / count) * mask
    return centred / (jnp.sqrt(jnp.square(centred).sum() / count) + _SMALL)


def same(rewards: jax.Array) -> jax.Array:
    """Mark the prompts whose samples all have the same reward, (B,): their advantages are zero."""
    equal = (rewards == rewards[:, :1]).reshape(len(rewards), -1)
    return equal.all(1)


def _require_several(rewards: jax.Array, name: str) -> int:
    """Return the number of samples per prompt; raise UserError if it is 1."""
    if rewards.shape[1] < 2:
        raise UserError(f"the advantage {name!r} needs at least 2 samples per prompt, got 1")
    return rewards.shape[1]

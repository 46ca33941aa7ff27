"""Losses on preference pairs: Bradley-Terry for reward models, DPO for policies.

- R. Bradley and M. Terry, "Rank analysis of incomplete block designs" (1952); as the loss of a
  reward model: L. Ouyang et al., arXiv:2203.02155, equation 1.
- DPO: R. Rafailov et al., arXiv:2305.18290, equation 7.
"""

import jax
from flax import nnx


def bradley_terry(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    """Return -log P(chosen is preferred) for scores (N,), where P = sigmoid(chosen - rejected)."""
    return -nnx.log_sigmoid(chosen - rejected)


def dpo_margin(
    chosen: jax.Array, rejected: jax.Array, ref_chosen: jax.Array, ref_rejected: jax.Array
) -> jax.Array:
    """Return how much more the policy prefers the chosen completion than its reference, in nats.

    Args:
        chosen: log-probability of each chosen completion under the policy, (N,).
        rejected: log-probability of each rejected completion under the policy, (N,).
        ref_chosen: log-probability of each chosen completion under the reference policy, (N,).
        ref_rejected: log-probability of each rejected completion under the reference policy, (N,).
    """
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def dpo(margin: jax.Array, beta: float) -> jax.Array:
    """Return -log sigmoid(beta * margin); beta * margin is the difference of implicit rewards."""
    return -nnx.log_sigmoid(beta * margin)

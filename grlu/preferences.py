"""Losses of pairs, of which a judge preferred one: a reward model's, and a policy's without one.

- R. Bradley and M. Terry, "Rank analysis of incomplete block designs" (1952); as the loss of a
  reward model: L. Ouyang et al., arXiv:2203.02155, equation 1.
- DPO: R. Rafailov et al., arXiv:2305.18290, equation 7.
"""

import jax
from flax import nnx


def bradley_terry(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    """-log P(chosen is preferred) for scores of shape (N,): P = sigmoid(chosen - rejected)."""
    return -nnx.log_sigmoid(chosen - rejected)


def dpo_margin(
    chosen: jax.Array, rejected: jax.Array, ref_chosen: jax.Array, ref_rejected: jax.Array
) -> jax.Array:
    """How much more the policy favours the chosen one than its reference does, in nats.

    Args:
        chosen: log-probability of the whole chosen completion, (N,).
        rejected: of the rejected one.
        ref_chosen: the reference's of the chosen one.
        ref_rejected: the reference's of the rejected one.
    """
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def dpo(margin: jax.Array, beta: float) -> jax.Array:
    """-log sigmoid(beta * margin): beta times the margin is the difference of implied rewards."""
    return -nnx.log_sigmoid(beta * margin)

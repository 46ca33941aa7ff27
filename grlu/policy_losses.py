"""Per-token losses of a policy, and the weights for summing them.

They take log-probabilities of the sampled tokens, shape (N, T), and advantages that broadcast to
that shape. A loss is `sum(weights * per_token)`. The weights are those of the full batch, so
micro-batches can be summed one after the other with the same result.

- REINFORCE: R. Williams (1992).
- PPO: J. Schulman et al., arXiv:1707.06347, equation 7; a clip range that is wider above than
  below: Q. Yu et al., "DAPO", arXiv:2503.14476.
- Per-sequence ratio: C. Zheng et al., "Group sequence policy optimization", arXiv:2507.18071.
- Aggregation: "sequence" from DeepSeekMath, "token" from DAPO, "constant" from Z. Liu et al.,
  arXiv:2503.20783.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Aggregation = Literal["token", "sequence", "constant"]
Level = Literal["token", "sequence"]


def reinforce(log_probs: jax.Array, advantages: jax.Array) -> jax.Array:
    """Return -A log pi; on-policy, its gradient is minus that of the expected reward."""
    return -jax.lax.stop_gradient(advantages) * log_probs


def ratios(
    log_probs: jax.Array, old: jax.Array, mask: jax.Array, level: Level = "token"
) -> jax.Array:
    """Return the importance ratios of the policy to the sampling policy, (N, T).

    With `level="sequence"`, every token has the geometric mean over its sequence.
    """
    logs = (log_probs - jax.lax.stop_gradient(old)) * mask
    if level == "sequence":
        length = jnp.maximum(mask.sum(-1, keepdims=True), 1)
        logs = jnp.broadcast_to(logs.sum(-1, keepdims=True) / length, logs.shape)
    return jnp.exp(logs)


def clipped(
    ratio: jax.Array, advantages: jax.Array, low: float, high: float
) -> tuple[jax.Array, jax.Array]:
    """Return -min(r A, clip(r, 1 - low, 1 + high) A), and a mask of the tokens that are clipped.

    Before the first update r is 1 and the gradient is that of `reinforce`.
    """
    advantages = jax.lax.stop_gradient(advantages)
    free = ratio * advantages
    held = jnp.clip(ratio, 1 - low, 1 + high) * advantages
    return -jnp.minimum(free, held), held < free


def clipped_value(
    values: jax.Array, old: jax.Array, targets: jax.Array, clip: float | None
) -> jax.Array:
    """Return half of the critic's squared error.

    Unless `clip` is None, take the larger of this error and that of the value clipped to within
    `clip` of the old one.
    """
    targets, old = jax.lax.stop_gradient((targets, old))
    error = jnp.square(values - targets)
    if clip is not None:
        near = old + jnp.clip(values - old, -clip, clip)
        error = jnp.maximum(error, jnp.square(near - targets))
    return 0.5 * error


def entropy(log_p: jax.Array) -> jax.Array:
    """Return the entropy in nats, shape (...), of log-probabilities (..., V)."""
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def token_weights(mask: jax.Array, aggregation: Aggregation) -> jax.Array:
    """Return the weight of each token's loss, (N, T), 0 outside the mask.

    "token": all tokens weigh the same and sum to 1. "sequence": all sequences weigh the same, as do
    the tokens within each, so tokens of long sequences weigh less. "constant": 1 / (N T) with the
    horizon T; like "token", but no completion's weight depends on the length of another.
    """
    if aggregation == "token":
        return mask / jnp.maximum(mask.sum(), 1)
    if aggregation == "sequence":
        return mask / jnp.maximum(mask.sum(-1, keepdims=True), 1) / len(mask)
    return mask / mask.size

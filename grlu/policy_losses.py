"""Losses of a policy, per token, and the weights with which they are summed.

All take log-probabilities of the tokens that were drawn, shape (N, T), and advantages that
broadcast to it. A loss is `sum(weights * per_token)`, the weights being those of the whole batch:
its parts can be summed one after the other (micro-batches), with the same result.

- REINFORCE: R. Williams (1992).
- PPO: J. Schulman et al., arXiv:1707.06347, equation 7; a clip that is wider above than below:
  Q. Yu et al., "DAPO", arXiv:2503.14476.
- Ratio of sequences: C. Zheng et al., "Group sequence policy optimization", arXiv:2507.18071.
- Aggregation: "sequence" is DeepSeekMath's, "token" DAPO's, "constant" that of Z. Liu et al.,
  arXiv:2503.20783.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Aggregation = Literal["token", "sequence", "constant"]
Level = Literal["token", "sequence"]


def reinforce(log_probs: jax.Array, advantages: jax.Array) -> jax.Array:
    """-A log pi: its gradient is that of the expected reward, for samples of this very policy."""
    return -jax.lax.stop_gradient(advantages) * log_probs


def ratios(
    log_probs: jax.Array, old: jax.Array, mask: jax.Array, level: Level = "token"
) -> jax.Array:
    """How much likelier the tokens are than when they were drawn, (N, T).

    At the level of the sequence: the geometric mean over its tokens, at each of them.
    """
    logs = (log_probs - jax.lax.stop_gradient(old)) * mask
    if level == "sequence":
        length = jnp.maximum(mask.sum(-1, keepdims=True), 1)
        logs = jnp.broadcast_to(logs.sum(-1, keepdims=True) / length, logs.shape)
    return jnp.exp(logs)


def clipped(
    ratio: jax.Array, advantages: jax.Array, low: float, high: float
) -> tuple[jax.Array, jax.Array]:
    """-min(r A, clip(r, 1 - low, 1 + high) A), and where the clip was what counted.

    Before the first update r is 1, and the gradient that of `reinforce`.
    """
    advantages = jax.lax.stop_gradient(advantages)
    free = ratio * advantages
    held = jnp.clip(ratio, 1 - low, 1 + high) * advantages
    return -jnp.minimum(free, held), held < free


def clipped_value(
    values: jax.Array, old: jax.Array, targets: jax.Array, clip: float | None
) -> jax.Array:
    """Half of the squared error of the critic; the worse of it and that of a value within `clip`
    of the old one, unless `clip` is None."""
    targets, old = jax.lax.stop_gradient((targets, old))
    error = jnp.square(values - targets)
    if clip is not None:
        near = old + jnp.clip(values - old, -clip, clip)
        error = jnp.maximum(error, jnp.square(near - targets))
    return 0.5 * error


def entropy(log_p: jax.Array) -> jax.Array:
    """Entropy in nats of the distributions with log-probabilities (..., V)."""
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def token_weights(mask: jax.Array, aggregation: Aggregation) -> jax.Array:
    """The weight of each token's loss, (N, T), 0 outside the mask.

    "token": all tokens weigh the same, and 1 together. "sequence": so do all sequences, and within
    each its tokens, so that those of a long one weigh less. "constant": 1 / (N T), T being the
    horizon: as "token", but no completion's weight depends on another one's length.
    """
    if aggregation == "token":
        return mask / jnp.maximum(mask.sum(), 1)
    if aggregation == "sequence":
        return mask / jnp.maximum(mask.sum(-1, keepdims=True), 1) / len(mask)
    return mask / mask.size

"""Log densities and divergences in nats, of diagonal Gaussians and Bernoulli pixels."""

import math

import jax
import jax.numpy as jnp

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """Return log(1 + exp(x)), exact far from zero, and fast: it dominates a VAE's run time."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return softplus(primals[0]), tangents[0] * jax.nn.sigmoid(primals[0])


def log_bernoulli(x: jax.Array, logits: jax.Array) -> jax.Array:
    """Return log Bernoulli(x; sigmoid(logits)) per feature; -cross-entropy for x in [0, 1]."""
    return x * logits - softplus(logits)


def log_normal(x: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """Return log N(x; mean, exp(log_variance)) per feature."""
    deviation = jnp.square(x - mean) * jnp.exp(-log_variance)
    return -0.5 * (deviation + log_variance) - _HALF_LOG_2PI


def kl_to_standard(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """Return KL(N(mean, exp(log_variance)) ‖ N(0, 1)) per feature."""
    return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance)


def kl_between(
    mean: jax.Array, log_variance: jax.Array, other_mean: jax.Array, other_log_variance: jax.Array
) -> jax.Array:
    """Return KL(N(mean, exp(log_variance)) ‖ N(other_mean, exp(other_log_variance)))."""
    ratio = log_variance - other_log_variance
    distance = jnp.square(mean - other_mean) * jnp.exp(-other_log_variance)
    return 0.5 * (distance + jnp.exp(ratio) - 1 - ratio)

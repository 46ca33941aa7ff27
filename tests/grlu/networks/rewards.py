"""Rewards: functions of a model's output, and changes to them."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.grlu.networks.tables import KINKED, ROUNDED, STOPPED, change, reward

# Functions of the model, its output (B, T, W) and the batch.


@reward()
def total(model: Any, h: jax.Array, batch: Any) -> jax.Array:
    return jnp.tanh(h).sum((1, 2))


@reward()
def squared(model: Any, h: jax.Array, batch: Any) -> jax.Array:
    return -jnp.square(h - batch["target"]).sum((1, 2))


@reward()
def log_likelihood(model: Any, h: jax.Array, batch: Any) -> jax.Array:
    logits = nnx.log_softmax(h.mean(1))
    return jnp.take_along_axis(logits, batch["label"][:, None], axis=1)[:, 0]


@reward()
def cross_entropy_of_merged_steps(model: Any, h: jax.Array, batch: Any) -> jax.Array:
    """Merge the positions of all sequences, like losses of language models."""
    logits = nnx.log_softmax(h.reshape(-1, h.shape[-1]))
    labels = jnp.repeat(batch["label"], h.shape[1])
    return jnp.take_along_axis(logits, labels[:, None], axis=1).reshape(h.shape[:2]).sum(1)


@reward(STOPPED)
def over_steps(model: Any, h: jax.Array, batch: Any) -> jax.Array:
    """Sum temporal-difference errors in a scan that stops the next value's gradient."""

    def step(total: jax.Array, pair: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        now, after = pair
        return 0.9 * total - jnp.square(1 + jax.lax.stop_gradient(after) - now), None

    values = jnp.swapaxes(h.sum(2), 0, 1)
    return jax.lax.scan(step, values[-1] / 2, (values, jnp.roll(values, -1, axis=0)))[0]


@reward(STOPPED)
def advantage(model: Any, h: jax.Array, batch: Any) -> jax.Array:
    """Weight a policy's log-probability with an advantage that counts as a constant."""
    weight = jax.lax.stop_gradient(batch["target"][:, 0, 0] - jnp.tanh(h[:, -1, -1]))
    return nnx.log_softmax(h[:, 0])[:, 0] * weight + 0.1 * h[:, -1, -1]


# Functions of the rewards, the model and the batch.


def _norm(model: Any) -> jax.Array:
    return sum((jnp.square(p).sum() for p in jax.tree.leaves(nnx.state(model, nnx.Param))), 0.0)


@change()
def weighted(r: jax.Array, model: Any, batch: Any) -> jax.Array:
    return r * batch["weight"]


@change()
def penalised(r: jax.Array, model: Any, batch: Any) -> jax.Array:
    return r - 0.05 * _norm(model)


@change()
def discounted_by_penalty(r: jax.Array, model: Any, batch: Any) -> jax.Array:
    return r / (1 + 0.05 * _norm(model))


@change()
def relative_to_group(r: jax.Array, model: Any, batch: Any) -> jax.Array:
    pairs = r.reshape(-1, 2)
    apart = (pairs - pairs.mean(1, keepdims=True)).reshape(-1)
    return apart / (1 + jnp.square(apart)) * batch["weight"]


@change()
def compared(r: jax.Array, model: Any, batch: Any) -> jax.Array:
    return jnp.tanh(r - jnp.roll(r, 1)) * batch["weight"] + r / 4


@change(KINKED)
def ranked(r: jax.Array, model: Any, batch: Any) -> jax.Array:
    return r * (1 + jnp.argsort(jnp.argsort(r)))


@change(KINKED)
def clipped(r: jax.Array, model: Any, batch: Any) -> jax.Array:
    return jnp.minimum(jnp.tanh(r) * batch["weight"], 0.5)


@change(ROUNDED)
def halved(r: jax.Array, model: Any, batch: Any) -> jax.Array:
    return r.astype(jnp.bfloat16)

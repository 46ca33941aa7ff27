"""What a run rewards: from a model and a batch to one reward per example, and what to report."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from grlu.errors import UserError

# (logits (B, classes), labels (B,)) -> rewards (B,)
Reward = Callable[[jax.Array, jax.Array], jax.Array]


def log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """log softmax(logits)[label], in nats."""
    return jnp.take_along_axis(nnx.log_softmax(logits), labels[:, None], axis=-1)[:, 0]


def floored_log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """log(softmax(logits)[label] + 1e-10), in nats: the reward of the published algorithm."""
    chosen = jnp.take_along_axis(nnx.softmax(logits), labels[:, None], axis=-1)[:, 0]
    return jnp.log(chosen + 1e-10)


def probability(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """softmax(logits)[label], in [0, 1]: the expected reward of a policy paid 1 if it is right."""
    return jnp.take_along_axis(nnx.softmax(logits), labels[:, None], axis=-1)[:, 0]


# Add your own: `trainers.REWARDS["margin"] = lambda logits, labels: ...`
REWARDS: dict[str, Reward] = {
    "floored_log_likelihood": floored_log_likelihood,
    "log_likelihood": log_likelihood,
    "probability": probability,
}


@dataclasses.dataclass(frozen=True)
class Classification:
    """Rewards a classifier for its answer to `batch["image"]`, given `batch["label"]`.

    A model with several heads gives logits of shape (B, heads, classes): its reward is the sum over
    the heads, and its answer the last one's.

    Attributes:
        reward: the reward function.
        metrics: names of the values reported per example.
        better: the metric that chooses checkpoints, and its direction.
    """

    reward: Reward
    metrics: tuple[str, ...] = ("reward", "accuracy")
    better: tuple[str, Literal["min", "max"]] = ("accuracy", "max")

    def __call__(
        self, model: Any, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = model(batch["image"])
        labels = batch["label"]
        if logits.ndim == 3:
            rewards = jnp.sum(jax.vmap(self.reward, (1, None), 1)(logits, labels), axis=1)
            logits = logits[:, -1]
        else:
            rewards = self.reward(logits, labels)
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        return rewards, {"reward": rewards, "accuracy": correct.astype(jnp.float32)}


def reward_named(name: str) -> Reward:
    """The reward of that name.

    Raises:
        UserError: if there is none.
    """
    if name not in REWARDS:
        raise UserError(f"trainer.reward must be one of {', '.join(REWARDS)}; got {name!r}")
    return REWARDS[name]

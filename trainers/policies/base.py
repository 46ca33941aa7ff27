"""Base class of the trainers that sample completions, and a critic."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from trainers.completions.rollout import Rollout
from trainers.loop.trainer import BaseTrainer, Values
from trainers.optimizer import Schedule


class CompletionTrainer(BaseTrainer):
    """Trainer whose steps sample completions; `rollout` is None with recorded preferences."""

    rollout: Rollout | None
    learning_rate: Schedule
    _graphdef: Any

    def model(self, state: Any) -> Any:
        """Return the model in evaluation mode; a reward model has a method `score`."""
        return nnx.merge(self._graphdef, state.params, state.rest, copy=True)

    @property
    def end_token(self) -> int | None:
        return None if self.rollout is None else self.rollout.prompts.end_token

    def scales(self, step: jax.Array) -> Values:
        return {"learning_rate": self.learning_rate(step)}

    def reason(self, evidence: Mapping[str, Any]) -> str:
        """Name the reward or utility that was not finite, if any; else suggest a remedy."""
        found = None if self.rollout is None else self.rollout.explain(evidence)
        return found or self.settings.remedy


class Critic(nnx.Module):
    """Critic: value of each state of a completion, or score of a full one, initially zero.

    Args:
        body: language model with `encode`, whose features a dense layer reads.
        rngs: source of the initial weights.
    """

    def __init__(self, body: Any, rngs: nnx.Rngs):
        tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        width = nnx.eval_shape(lambda m, x: m.encode(x), body, tokens).shape[-1]
        self.body = body
        self.out = nnx.Linear(width, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return the value of the state after each token, (N, T)."""
        return self.out(self.body.encode(tokens))[..., 0]

    def score(self, sequences: jax.Array, last: jax.Array) -> jax.Array:
        """Return the value after the token at position `last` (N,) of each sequence, (N,)."""
        return jnp.take_along_axis(self(sequences), last[:, None], axis=1)[:, 0]


def variables(model: Any) -> tuple[Any, Any]:
    """Return the parameters and the other variables of a model in evaluation mode."""
    _, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return params, rest

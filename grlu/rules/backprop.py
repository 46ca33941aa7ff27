"""Backpropagation as a rule: the baseline for all others."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from grlu.network import Aux, Batch, Objective, Params, State
from grlu.rules.rule import Rule


@dataclasses.dataclass(frozen=True)
class Backprop(Rule):
    """Exact gradient of the mean reward, by reverse-mode differentiation.

    >>> import grlu, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    >>> estimate = grlu.Backprop()(lambda model, x: -(model(x)[:, 0] - 3 * x[:, 0]) ** 2)
    >>> reward, grads = estimate(model, jnp.ones((4, 1)), jax.random.key(0))
    >>> print(grads["bias"][...] == -2 * (3 - model.kernel[0] - model.bias[...]))
    [ True]
    """

    local: ClassVar[bool] = True

    def passes(self, hidden: int | None = None) -> tuple[int, str] | None:
        del hidden
        return 1, "1, the backward pass not counted"

    def gradient(
        self, objective: Objective, params: Params, rest: State, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux, Params]:
        del key

        def mean_reward(params: Params) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            rewards, aux = objective(params, rest, batch)
            return jnp.mean(rewards), (rewards, aux)

        (_, (rewards, aux)), ascent = jax.value_and_grad(mean_reward, has_aux=True)(params)
        return rewards, aux, ascent

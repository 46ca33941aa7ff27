"""Weight perturbation: noise on all weights at once, the oldest neighbour of node perturbation.

Source: Jabri & Flower (1992); as a gradient estimate, Spall (1992), "SPSA". Its noise has as many
dimensions as there are weights, where node perturbation's has as many as there are units.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from grlu.errors import UserError
from grlu.network import Objective
from grlu.noise import signs
from grlu.rule import Rule
from grlu.spread import total


@dataclasses.dataclass(frozen=True)
class WeightPerturbation(Rule):
    """Antithetic Rademacher noise on the weights, and the batch's mean reward.

    Attributes:
        samples: antithetic pairs per batch.
        sigma: standard deviation of the noise, in units of the weights.

    >>> import grlu, jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    >>> rule = grlu.WeightPerturbation(samples=512, sigma=0.01)
    >>> reward_fn = lambda model, x: -(model(x) ** 2)[:, 0]
    >>> grlu.alignment(rule, reward_fn, model, jnp.eye(2), jax.random.key(0)).cosine > 0.95
    True
    """

    of_weights: ClassVar[bool] = True
    dealt: ClassVar[tuple[str, int]] = ("samples", 1)

    samples: int = 16
    sigma: float | jax.Array = 0.01

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"samples must be a positive integer, got {self.samples!r}")
        if isinstance(self.sigma, int | float) and not self.sigma > 0:
            raise UserError(f"sigma must be positive, got {self.sigma!r}")

    def gradient(
        self, objective: Objective, params: Any, rest: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        weights, restore = ravel_pytree(params)

        def slope(key: jax.Array) -> jax.Array:
            xi = signs(key, weights.shape)
            up, down = (
                jnp.mean(objective(restore(weights + sign * self.sigma * xi), rest, batch)[0])
                for sign in (1, -1)
            )
            return xi * (up - down) / (2 * self.sigma)

        # One pair after the other: the noise of all at once would be `samples` copies of the model.
        ascent = total(slope, jax.random.split(key, self.samples))
        rewards, aux = objective(params, rest, batch)
        return rewards, aux, restore(ascent / self.samples)

"""Weight perturbation: noise on all weights at once, the predecessor of node perturbation.

Source: Jabri & Flower (1992); as a gradient estimate, Spall (1992), "SPSA". Its noise has one
dimension per weight; that of node perturbation has one per unit.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from grlu.errors import UserError
from grlu.jaxprs.widening import in_float32, widened
from grlu.network import Aux, Batch, Objective, Params, State
from grlu.noise.directions import signs
from grlu.noise.spread import total
from grlu.noise.unused import used_weights
from grlu.rules.rule import Rule


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

    def passes(self, hidden: int | None = None) -> tuple[int, str] | None:
        del hidden
        return 2 * self.samples, f"2N, N = {self.samples} antithetic pairs"

    def gradient(
        self, objective: Objective, params: Params, rest: State, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux, Params]:
        weights, restore = ravel_pytree(jax.tree.map(widened, params))
        used = used_weights(objective, params, rest, batch)
        wide = in_float32(objective, params, rest, batch)

        def slope(key: jax.Array) -> jax.Array:
            # Noise on an unused weight would only change it at random.
            xi = signs(key, weights.shape) * used
            up, down = (
                jnp.mean(wide(restore(weights + sign * self.sigma * xi), rest, batch)[0])
                for sign in (1, -1)
            )
            return xi * (up - down) / (2 * self.sigma)

        # Run pairs one by one: their noise together would take `samples` copies of the model.
        ascent = restore(total(slope, jax.random.split(key, self.samples)) / self.samples)
        rewards, aux = objective(params, rest, batch)
        return rewards, aux, jax.tree.map(lambda a, p: a.astype(p.dtype), ascent, params)

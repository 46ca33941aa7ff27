"""Forward gradients: exact directional derivatives in random directions, by forward-mode AD.

Node and weight perturbation in the limit of no noise, without the curvature's bias; but the network
must be differentiable and known. Sources: Baydin et al. (2022), arXiv:2202.08587 (weights); Ren et
al. (2022), arXiv:2210.03310 (activities).
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from grlu import credit
from grlu.errors import UserError
from grlu.noise import NOISES, directions, hadamard, signs
from grlu.rule import Rule
from grlu.spread import total
from grlu.tracing.network import Objective, trace
from grlu.tracing.program import Arrival
from grlu.tracing.unused import used_weights


@dataclasses.dataclass(frozen=True)
class ForwardGradient(Rule):
    """The reward's derivative in a random direction, times the direction.

    Attributes:
        samples: directions per example (of activities) or per batch (of weights).
        of: "activity": directions in the sites' pre-activations, and a local update of each layer;
            "weight": directions in all weights at once.
        noise: the activities' directions: "rademacher", "gaussian" or "orthogonal".
    """

    dealt: ClassVar[tuple[str, int]] = ("samples", 1)

    samples: int = 16
    of: Literal["activity", "weight"] = "activity"
    noise: Literal["rademacher", "gaussian", "orthogonal"] = "rademacher"

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise UserError(f"samples must be a positive integer, got {self.samples!r}")
        if self.of not in ("activity", "weight"):
            raise UserError(f"of must be 'activity' or 'weight', got {self.of!r}")
        if self.noise not in NOISES:
            raise UserError(f"noise must be one of {', '.join(NOISES)}; got {self.noise!r}")
        if self.noise == "orthogonal":
            hadamard(self.samples)

    @property
    def traces(self) -> bool:
        return self.of == "activity"

    def gradient(
        self, objective: Objective, params: Any, rest: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        if self.of == "weight":
            return self._of_weights(objective, params, rest, batch, key)
        network = trace(objective, params, rest, batch)
        clean = network.clean(params, rest, batch)
        infos = network.sites
        xi = directions(key, self.noise, self.samples, [i.rows for i in infos])
        xi = [x if info.live else jnp.zeros_like(x) for x, info in zip(xi, infos, strict=True)]
        xi = [x.astype(info.dtype) for x, info in zip(xi, infos, strict=True)]

        def visit(at: Arrival) -> tuple[jax.Array, None]:
            return at.fn(at.z + at.given), None

        def shifted(shifts: list[jax.Array]) -> jax.Array:
            given = dict(enumerate(shifts))
            return network.run(params, rest, batch, visit, given=given, stops=clean.stops)[0]

        zeros = [jnp.zeros_like(z) for z in clean.zs]
        slopes = jax.vmap(lambda x: jax.jvp(shifted, (zeros,), (x,))[1])(xi)
        credits = credit.from_slopes(infos, xi, slopes / network.batch_size)
        return clean.rewards, clean.aux, clean.local_update(credits)

    def _of_weights(
        self, objective: Objective, params: Any, rest: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        weights, restore = ravel_pytree(params)
        used = used_weights(objective, params, rest, batch)

        def mean_reward(weights: jax.Array) -> jax.Array:
            return jnp.mean(objective(restore(weights), rest, batch)[0])

        def slope(key: jax.Array) -> jax.Array:
            # A direction of what the reward does not depend on would only move it at random.
            xi = (signs(key, weights.shape) * used).astype(weights.dtype)
            return xi * jax.jvp(mean_reward, (weights,), (xi,))[1]

        ascent = total(slope, jax.random.split(key, self.samples))
        rewards, aux = objective(params, rest, batch)
        return rewards, aux, restore(ascent / self.samples)

"""Forward gradients: exact directional derivatives in random directions, by forward-mode AD.

They are node and weight perturbation in the limit of zero noise: curvature adds no bias, but the
network must be known and differentiable. Sources: Baydin et al. (2022), arXiv:2202.08587
(weights); Ren et al. (2022), arXiv:2210.03310 (activities).
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from grlu.errors import UserError
from grlu.jaxprs.widening import in_float32, widened
from grlu.network import Aux, Batch, Objective, Params, State, trace, untouched
from grlu.noise.directions import NOISES, directions, hadamard, signs
from grlu.noise.spread import total
from grlu.noise.unused import used_weights
from grlu.rules import credit
from grlu.rules.rule import Rule
from grlu.tracing.program import Arrival


@dataclasses.dataclass(frozen=True)
class ForwardGradient(Rule):
    """Directional derivative of the reward in random directions, times the direction.

    Attributes:
        samples: directions per example (of="activity") or per batch (of="weight").
        of: "activity": directions in the sites' pre-activations, with a local update of each layer;
            "weight": directions in all weights at once.
        noise: directions of activities: "rademacher", "gaussian" or "orthogonal".
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

    def passes(self, hidden: int | None = None) -> tuple[int, str] | None:
        del hidden
        return self.samples, f"{self.samples}, their tangents not counted"

    def gradient(
        self, objective: Objective, params: Params, rest: State, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux, Params]:
        if self.of == "weight":
            return self._of_weights(objective, params, rest, batch, key)
        traced = trace(objective, params, rest, batch)
        # Low-precision slopes would drown out small credits.
        network = traced.widened()
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
        rewards, aux = clean.rewards, clean.aux
        if traced.low:
            rewards, aux = traced.run(params, rest, batch, untouched)
        return rewards, aux, clean.local_update(credits)

    def _of_weights(
        self, objective: Objective, params: Params, rest: State, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux, Params]:
        weights, restore = ravel_pytree(jax.tree.map(widened, params))
        used = used_weights(objective, params, rest, batch)
        wide = in_float32(objective, params, rest, batch)

        def mean_reward(weights: jax.Array) -> jax.Array:
            return jnp.mean(wide(restore(weights), rest, batch)[0])

        def slope(key: jax.Array) -> jax.Array:
            # A direction in an unused weight would only change it at random.
            xi = signs(key, weights.shape) * used
            return xi * jax.jvp(mean_reward, (weights,), (xi,))[1]

        ascent = total(slope, jax.random.split(key, self.samples))
        rewards, aux = objective(params, rest, batch)
        ascent = restore(ascent / self.samples)
        return rewards, aux, jax.tree.map(lambda a, p: a.astype(p.dtype), ascent, params)

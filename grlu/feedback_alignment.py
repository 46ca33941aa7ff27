"""Feedback alignment: credit sent back through fixed random weights instead of the forward ones.

Sources: Lillicrap et al. (2016), "Random synaptic feedback weights support error backpropagation
for deep learning"; direct feedback: Nøkland (2016), arXiv:1609.01596.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from grlu import credit
from grlu.errors import UserError
from grlu.network import CleanPass, Network, Objective, trace
from grlu.rule import Rule
from grlu.sites import Site


@dataclasses.dataclass(frozen=True)
class FeedbackAlignment(Rule):
    """The output layer's exact delta, carried to the other layers by random feedback.

    All layers but the first must be dense (`x @ kernel + bias`).

    Attributes:
        direct: whether the delta goes from the output to every layer at once (direct feedback
            alignment), times the unit's own slope; else from layer to layer.
        seed: of the feedback weights, which stay the same for the whole run.
    """

    local: ClassVar[bool] = True

    direct: bool = False
    seed: int = 0

    def gradient(
        self, objective: Objective, params: Any, rest: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        del key
        network = trace(objective, params, rest, batch)
        for info in network.sites:
            if info.site.upstream and info.site.dense is None:
                raise UserError(
                    f"{info.name}: feedback alignment needs dense layers after the first one; "
                    "this layer is another kind, train it by another rule"
                )
        clean = network.clean(params, rest, batch, slopes=self.direct)
        send = self._directly if self.direct else self._by_layer
        credits = send(network, params, rest, batch, clean)
        return clean.rewards, clean.aux, clean.local_update(credits)

    def _by_layer(
        self, network: Network, params: Any, rest: Any, batch: Any, clean: CleanPass
    ) -> list[jax.Array]:
        def mean_reward(shifts: list[jax.Array]) -> jax.Array:
            def visit(site: Site, z: jax.Array, fn: Callable) -> jax.Array:
                if site.dense is not None and site.upstream:
                    # The value is z, its derivative by x that of x B.
                    x = site.dense.x
                    units = z.size // (x.size // x.shape[-1])
                    back = (x @ self._weights(site, x.shape[-1], units)).reshape(z.shape)
                    z = jax.lax.stop_gradient(z - back) + back
                return fn(z + shifts[site.index])

            return jnp.mean(network.run(params, rest, batch, visit)[0])

        return jax.grad(mean_reward)([jnp.zeros_like(z) for z in clean.zs])

    def _directly(
        self, network: Network, params: Any, rest: Any, batch: Any, clean: CleanPass
    ) -> list[jax.Array]:
        outputs = [info.site.index for info in network.sites if info.output]
        if len(outputs) != 1:
            raise UserError(f"direct feedback needs one output layer, the model has {len(outputs)}")
        (delta,) = credit.exact(network, params, rest, batch, outputs)
        credits = [
            delta @ self._weights(info.site, delta.shape[1], slope.shape[1]) * slope
            for info, (_, slope) in zip(network.sites, clean.responses, strict=True)
        ]
        credits[outputs[0]] = delta
        return credits

    def _weights(self, site: Site, fan_in: int, units: int) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(self.seed), site.index)
        return jax.random.normal(key, (fan_in, units)) / jnp.sqrt(fan_in)

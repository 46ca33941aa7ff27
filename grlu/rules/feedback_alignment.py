"""Feedback alignment: credit carried back by fixed random weights instead of the forward weights.

Sources: Lillicrap et al. (2016), "Random synaptic feedback weights support error backpropagation
for deep learning"; direct feedback: Nøkland (2016), arXiv:1609.01596.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from grlu.errors import UserError
from grlu.network import (
    Aux,
    Batch,
    CleanPass,
    Network,
    Objective,
    Params,
    SiteInfo,
    State,
    trace,
    untouched,
)
from grlu.rules import credit
from grlu.rules.rule import Rule
from grlu.tracing.program import Arrival, Site


@dataclasses.dataclass(frozen=True)
class FeedbackAlignment(Rule):
    """Exact delta of the output layer, carried to the other layers by random feedback.

    All layers except the first must be dense (`x @ kernel + bias`).

    Attributes:
        direct: carry the delta from the output to every layer directly (direct feedback alignment),
            times the unit's own slope, instead of layer by layer.
        seed: seed of the feedback weights, which stay fixed for the whole run.
    """

    local: ClassVar[bool] = True

    direct: bool = False
    seed: int = 0

    @property
    def traces(self) -> bool:
        return True

    def passes(self, hidden: int | None = None) -> tuple[int, str] | None:
        del hidden
        return 1, "1, the backward pass not counted"

    def gradient(
        self, objective: Objective, params: Params, rest: State, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux, Params]:
        del key
        traced = trace(objective, params, rest, batch)
        network = traced.widened()
        for info in network.sites:
            if info.site.fed and info.site.dense is None and not info.penalty:
                raise UserError(
                    f"{info.name}: feedback alignment needs dense layers after the first one; "
                    "this layer is not dense, train it by another rule"
                )
        clean = network.clean(params, rest, batch, slopes=self.direct)
        send = self._directly if self.direct else self._by_layer
        credits = send(network, params, rest, batch, clean)
        rewards, aux = clean.rewards, clean.aux
        if traced.low:
            rewards, aux = traced.run(params, rest, batch, untouched)
        return rewards, aux, clean.local_update(credits)

    def _by_layer(
        self, network: Network, params: Params, rest: State, batch: Batch, clean: CleanPass
    ) -> list[jax.Array]:
        def mean_reward(shifts: list[jax.Array]) -> jax.Array:
            def visit(at: Arrival) -> tuple[jax.Array, None]:
                z = at.z
                if at.x is not None and at.site.fed:
                    # The value is z, but its derivative with respect to x is that of x B.
                    units = z.size // (at.x.size // at.x.shape[-1])
                    back = (at.x @ self._weights(at.site, at.x.shape[-1], units)).reshape(z.shape)
                    z = jax.lax.stop_gradient(z - back) + back
                return at.fn(z + at.given), None

            given = dict(enumerate(shifts))
            return jnp.mean(network.run(params, rest, batch, visit, given=given)[0])

        return jax.grad(mean_reward)([jnp.zeros_like(z) for z in clean.zs])

    def _directly(
        self, network: Network, params: Params, rest: State, batch: Batch, clean: CleanPass
    ) -> list[jax.Array]:
        outputs = [info.site.index for info in network.sites if info.output]
        if len(outputs) != 1:
            raise UserError(f"direct feedback needs one output layer, the model has {len(outputs)}")
        penalties = [info.site.index for info in network.sites if info.penalty]
        known = [*outputs, *penalties]
        exact = dict(zip(known, credit.exact(network, params, rest, batch, known), strict=True))
        for info in network.sites:
            if info.live and not info.vectors and not info.penalty:
                raise UserError(
                    f"{info.name}: direct feedback needs layers of shape (batch, units), this one "
                    f"has {info.shape}; train it by another rule"
                )
        delta = network.sites[outputs[0]].by_example(exact[outputs[0]])

        def carried(info: SiteInfo, slope: jax.Array) -> jax.Array:
            if not info.live:
                return jnp.zeros_like(slope)
            weights = self._weights(info.site, delta.shape[-1], info.shape[-1])
            return info.by_loops(delta @ weights) * slope

        return [
            exact[info.site.index] if info.site.index in exact else carried(info, slope)
            for info, (_, slope) in zip(network.sites, clean.responses, strict=True)
        ]

    def _weights(self, site: Site, fan_in: int, units: int) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(self.seed), site.index)
        return jax.random.normal(key, (fan_in, units)) / jnp.sqrt(fan_in)

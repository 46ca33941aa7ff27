"""Exact credit: the oracle that tests the local update."""

import dataclasses
from typing import Any, ClassVar

import jax

from grlu import credit
from grlu.rule import Rule
from grlu.tracing.network import Objective, trace


@dataclasses.dataclass(frozen=True)
class ExactCredit(Rule):
    """The exact gradient at every site, and the local update of each layer.

    The result is the gradient that backprop finds.
    """

    local: ClassVar[bool] = True

    @property
    def traces(self) -> bool:
        return True

    def gradient(
        self, objective: Objective, params: Any, rest: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        del key
        network = trace(objective, params, rest, batch)
        clean = network.clean(params, rest, batch)
        credits = credit.exact(network, params, rest, batch, range(len(network.sites)))
        return clean.rewards, clean.aux, clean.local_update(credits)

"""The oracle of credit: what every unit would know if gradients did flow."""

import dataclasses
from typing import Any, ClassVar

import jax

from grlu import credit
from grlu.network import Objective, trace
from grlu.rule import Rule


@dataclasses.dataclass(frozen=True)
class ExactCredit(Rule):
    """The exact gradient at every site, and the local update of each layer.

    Its result is the gradient that backprop finds, which is what tests the local update.
    """

    local: ClassVar[bool] = True

    def gradient(
        self, objective: Objective, params: Any, rest: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        del key
        network = trace(objective, params, rest, batch)
        clean = network.clean(params, rest, batch)
        credits = credit.exact(network, params, rest, batch, range(len(network.sites)))
        return clean.rewards, clean.aux, clean.local_update(credits)

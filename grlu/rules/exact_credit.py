"""Exact credit: the oracle for tests of the local update."""

import dataclasses
from typing import ClassVar

import jax

from grlu.network import Aux, Batch, Objective, Params, State, trace
from grlu.rules import credit
from grlu.rules.rule import Rule


@dataclasses.dataclass(frozen=True)
class ExactCredit(Rule):
    """Exact credit at every site, with the local update of each layer.

    The result equals the gradient of backpropagation.
    """

    local: ClassVar[bool] = True

    @property
    def traces(self) -> bool:
        return True

    def gradient(
        self, objective: Objective, params: Params, rest: State, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux, Params]:
        del key
        network = trace(objective, params, rest, batch)
        clean = network.clean(params, rest, batch)
        credits = credit.exact(network, params, rest, batch, range(len(network.sites)))
        return clean.rewards, clean.aux, clean.local_update(credits)

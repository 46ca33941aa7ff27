"""What a run knows at a step: one pytree, saved as it is."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct


class Note(nnx.Variable):
    """What an objective writes on its model in a step's clean pass, kept in the run's state."""


class TrainState(struct.PyTreeNode):
    """The state of a run; the next step is a pure function of it and of the batch.

    Attributes:
        step: steps taken, int32 scalar.
        key: the run's key; a step draws from `fold_in(key, step)`.
        params: the trained variables.
        rest: the model's other variables (rng streams, statistics, frozen parts).
        opt_state: the optimizer's state.
        average: running average of `params` for evaluation, or None.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    rest: Any
    opt_state: Any
    average: Any

    @property
    def begins(self) -> Any:
        """What `begun_from` takes of another run's `params`: they must have its shapes."""
        return self.params

    def begun_from(self, other: "TrainState") -> "TrainState":
        """This state with the weights, and statistics of the data, of another run's state."""
        statistics = nnx.filter_state(other.rest, nnx.BatchStat)
        params, statistics = jax.tree.map(jnp.copy, (other.params, statistics))
        return self.replace(
            params=params,
            rest=nnx.merge_state(self.rest, statistics),
            average=None if self.average is None else jax.tree.map(jnp.copy, params),
        )

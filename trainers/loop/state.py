"""State of a run: one pytree, saved as is."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct


class TrainState(struct.PyTreeNode):
    """State of a run; the next step is a pure function of the state and the batch.

    Attributes:
        step: number of steps taken, int32 scalar.
        key: key of the run; each step uses `fold_in(key, step)`.
        params: trained variables.
        rest: the model's other variables (PRNG streams, statistics, frozen parts).
        opt_state: state of the optimizer.
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
        """Variables with the shapes of the `params` that `begun_from` copies."""
        return self.params

    def begun_from(self, other: "TrainState") -> "TrainState":
        """Return this state with the weights and data statistics of another run's state."""
        statistics = nnx.filter_state(other.rest, nnx.BatchStat)
        params, statistics = jax.tree.map(jnp.copy, (other.params, statistics))
        return self.replace(
            params=params,
            rest=nnx.merge_state(self.rest, statistics),
            average=None if self.average is None else jax.tree.map(jnp.copy, params),
        )

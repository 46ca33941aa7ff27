"""States of runs that learn from rewards or preferences, besides weights and optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from trainers.loop.state import TrainState


class PolicyState(TrainState):
    """State of a policy's run.

    Attributes:
        reference: arrays of the reference policy, or None.
        critic: variables of a separate critic, trained and other, or None.
        critic_opt: state of its optimizer, or None.
        tokens: number of tokens sampled so far, int32, for the warm-up of the KL penalty.
        follows: whether the reference has the weights with which the run starts.
    """

    reference: Any
    critic: Any
    critic_opt: Any
    tokens: jax.Array
    follows: bool = struct.field(pytree_node=False, default=False)

    def begun_from(self, other: TrainState) -> "PolicyState":
        """Return this state with another run's weights, also in a reference that follows them."""
        state: Any = super().begun_from(other)
        if not self.follows:
            return state
        return state.replace(reference=jax.tree.map(jnp.copy, (state.params, state.rest)))


class PreferenceState(TrainState):
    """State of a run that learns from preferences.

    Attributes:
        drawn_from: variables of the frozen policy that samples the pairs, parameters and other.
    """

    drawn_from: Any

    @property
    def begins(self) -> Any:
        return self.drawn_from[0]

    def begun_from(self, other: TrainState) -> "PreferenceState":
        """Return this state with another run's policy, to sample from and to start with."""
        policy = jax.tree.map(jnp.copy, other.params)
        params = jax.tree.map(jnp.copy, policy)
        if "body" in self.params:  # A reward model's features.
            params = nnx.merge_state(self.params, nnx.State({"body": params}))
        return self.replace(params=params, drawn_from=(policy, self.drawn_from[1]))

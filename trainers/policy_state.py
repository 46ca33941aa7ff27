"""What a policy's run knows at a step, beside its weights."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from trainers.state import TrainState


class PolicyState(TrainState):
    """The state of a policy's run.

    Attributes:
        reference: what the reference stores, or None.
        critic: the variables of a critic apart, trained and not, or None.
        critic_opt: its optimizer's state, or None.
        tokens: tokens drawn so far, int32, for the warm-up of the divergence.
        fault: the first reward that was not finite, -1 without one, its prompt and completion;
            int32 of shape (1 + P + T,).
        follows: whether the reference is the weights with which the run begins.
    """

    reference: Any
    critic: Any
    critic_opt: Any
    tokens: jax.Array
    fault: jax.Array
    follows: bool = struct.field(pytree_node=False, default=False)

    def begun_from(self, other: TrainState) -> "PolicyState":
        """This state with the weights of another run's, to which the reference may be held."""
        state: Any = super().begun_from(other)
        if not self.follows:
            return state
        return state.replace(reference=jax.tree.map(jnp.copy, (state.params, state.rest)))

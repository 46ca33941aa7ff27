"""A model that values: the states of a completion, for a critic, or all of it, for a judge."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Critic(nnx.Module):
    """Values of states: a language model's features, and a dense layer that starts at zero."""

    def __init__(self, body: Any, width: int, rngs: nnx.Rngs):
        self.body = body
        self.out = nnx.Linear(width, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """The value of the state after each token, (N, T)."""
        return self.out(self.body.encode(tokens))[..., 0]

    def score(self, sequences: jax.Array, last: jax.Array) -> jax.Array:
        """The value of whole sequences, (N,): that after the token at `last`, (N,)."""
        return jnp.take_along_axis(self(sequences), last[:, None], axis=1)[:, 0]


def critic_of(body: Any, rngs: nnx.Rngs) -> Critic:
    """A critic with the features of `body`."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    width = nnx.eval_shape(lambda m, x: m.encode(x), body, tokens).shape[-1]
    return Critic(body, width, rngs)

"""Value models: a critic of the states of a completion, or a score of a whole completion."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class Critic(nnx.Module):
    """A language model's features, followed by a dense layer that starts at zero.

    Args:
        body: language model with `encode`.
        width: number of features.
        rngs: source of the initial weights.
    """

    def __init__(self, body: Any, width: int, rngs: nnx.Rngs):
        self.body = body
        self.out = nnx.Linear(width, 1, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return the value of the state after each token, (N, T)."""
        return self.out(self.body.encode(tokens))[..., 0]

    def score(self, sequences: jax.Array, last: jax.Array) -> jax.Array:
        """Return the value after the token at position `last` (N,) of each sequence, (N,)."""
        return jnp.take_along_axis(self(sequences), last[:, None], axis=1)[:, 0]


def make_critic(body: Any, rngs: nnx.Rngs) -> Critic:
    """Return a critic on the features of `body`."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    width = nnx.eval_shape(lambda m, x: m.encode(x), body, tokens).shape[-1]
    return Critic(body, width, rngs)

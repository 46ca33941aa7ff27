"""Multi-layer perceptron with a pluggable activation and parameter-free layer norm."""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

import grlu

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nnx.relu,
    "tanh": jnp.tanh,
    "gelu": grlu.activation(nnx.gelu),
}


def layer_norm(x: jax.Array) -> jax.Array:
    """Layer norm over the last axis without parameters: (x - mean) / (std + 1e-8).

    The standard deviation is the population's. A constant input gives zeros, and a zero gradient
    where the square root has none.
    """
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred / (jnp.sqrt(jnp.maximum(variance, 1e-16)) + 1e-8)


class MLP(nnx.Module):
    """Dense layers: normalise, multiply, activate; the last one gives the logits.

    Weights are he-normal, biases zero.

    Args:
        example_shape: shape of one example, `(features,)`.
        outputs: number of outputs.
        hidden: width of each hidden layer; empty for a linear model.
        activation: "relu", "tanh", "gelu" or "topk".
        topk: share of the units that win, in (0, 1], where the activation is "topk".
        topk_mode: "gumbel" (winners drawn in training) or "hard".
        layer_norm: whether each layer's input is normalised, without parameters.
        rngs: source of the initial weights and of the top-k's draws.

    Raises:
        UserError: on examples that are not flat, or a size that is not positive.
    """

    def __init__(
        self,
        example_shape: Sequence[int],
        outputs: int,
        *,
        hidden: tuple[int, ...] = (256,),
        activation: Literal["relu", "tanh", "gelu", "topk"] = "relu",
        topk: float = 0.5,
        topk_mode: Literal["gumbel", "hard"] = "gumbel",
        layer_norm: bool = True,
        rngs: nnx.Rngs,
    ):
        if len(example_shape) != 1:
            raise grlu.UserError(
                f"mlp takes flat examples, the data's have shape {tuple(example_shape)}; "
                "set dataset.flatten=true"
            )
        sizes = [example_shape[0], *hidden, outputs]
        if min(sizes) < 1:
            raise grlu.UserError(f"mlp needs positive layer sizes, got {sizes}")
        if activation not in ("topk", *ACTIVATIONS):
            raise grlu.UserError(
                f"activation must be one of {', '.join((*ACTIVATIONS, 'topk'))}; got {activation!r}"
            )
        self.layer_norm = layer_norm
        self.layers = nnx.List(
            nnx.Linear(fan_in, units, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
            for fan_in, units in itertools.pairwise(sizes)
        )
        self.activations = nnx.List(
            grlu.TopK(topk, topk_mode, rngs=rngs) if activation == "topk" else _Fixed(activation)
            for _ in hidden
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `x`, shape (B, features), to logits, shape (B, outputs)."""
        for layer, activate in zip(self.layers[:-1], self.activations, strict=True):
            x = activate(layer(self._normalised(x)))
        return self.layers[-1](self._normalised(x))

    def _normalised(self, x: jax.Array) -> jax.Array:
        return layer_norm(x) if self.layer_norm else x


class _Fixed(nnx.Module):
    """An activation without state, by name."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, z: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.name](z)

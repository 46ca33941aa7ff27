"""Multi-layer perceptron with a pluggable activation and parameter-free layer norm."""

import itertools
from typing import Literal

import jax
from flax import nnx

import grlu
from models.layers import ActivationName, dense, require_flat
from models.layers import activation as make_activation
from models.layers import layer_norm as normalised


class MLP(nnx.Module):
    """Multi-layer perceptron: layer norm, dense layer, activation; the last layer gives logits.

    Weights are he-normal, biases zero.

    Args:
        example_shape: shape of one example, `(features,)`.
        outputs: number of outputs.
        hidden: width of each hidden layer; empty for a linear model.
        activation: "relu", "tanh", "gelu" or "topk".
        topk: fraction of the units that win, in (0, 1], for activation "topk".
        topk_mode: "gumbel" (winners sampled in training) or "hard".
        layer_norm: normalise each layer's input, without parameters.
        dropout: dropout rate of the hidden units, in [0, 1).
        rngs: source of the initial weights, of dropout and of the top-k's noise.

    Raises:
        UserError: if examples are not flat, or a size is out of range.
    """

    def __init__(
        self,
        example_shape: tuple[int, ...],
        outputs: int,
        *,
        hidden: tuple[int, ...] = (256,),
        activation: ActivationName = "relu",
        topk: float = 0.5,
        topk_mode: Literal["gumbel", "hard"] = "gumbel",
        layer_norm: bool = True,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        sizes = [require_flat("mlp", example_shape), *hidden, outputs]
        if min(sizes) < 1:
            raise grlu.UserError(f"mlp needs positive layer sizes, got {sizes}")
        if not 0 <= dropout < 1:
            raise grlu.UserError(f"dropout must lie in [0, 1), got {dropout}")
        self.layer_norm = layer_norm
        self.dropout = nnx.Dropout(dropout, rngs=rngs) if dropout else None
        self.layers = nnx.List(dense(*pair, rngs) for pair in itertools.pairwise(sizes))
        self.activations = nnx.List(
            make_activation(activation, topk=topk, topk_mode=topk_mode, rngs=rngs) for _ in hidden
        )

    def encode(self, x: jax.Array) -> jax.Array:
        """Map `x`, shape (B, features), to the activity before the last layer, (B, units)."""
        for layer, activate in zip(self.layers[:-1], self.activations, strict=True):
            x = activate(layer(self._normalised(x)))
            x = self.dropout(x) if self.dropout else x
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `x`, shape (B, features), to logits, shape (B, outputs)."""
        return self.layers[-1](self._normalised(self.encode(x)))

    def _normalised(self, x: jax.Array) -> jax.Array:
        return normalised(x) if self.layer_norm else x

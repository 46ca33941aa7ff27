"""Multi-layer perceptron with skip connections, which keep credit strong in deep networks."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

import grlu
from models.layers import ActivationName, dense, layer_norm, require_flat
from models.layers import activation as make_activation


class SkipMLP(nnx.Module):
    """Multi-layer perceptron of equal hidden layers with skip connections.

    Every layer's input is normalised without parameters (pre-norm); weights are he-normal.

    Args:
        example_shape: shape of one example, `(features,)`.
        outputs: number of outputs.
        width: units of each hidden layer.
        depth: number of hidden layers.
        skip: "add": each hidden layer after the first adds its output to its input (He et al. 2016,
            arXiv:1603.05027); "concat": it appends its output to its input (Huang et al. 2017,
            arXiv:1608.06993); "head": a plain chain whose head reads all hidden layers.
        activation: "relu", "tanh", "gelu" or "topk".
        topk: fraction of the units that win, in (0, 1], for activation "topk".
        topk_mode: "gumbel" (winners sampled in training) or "hard".
        rngs: source of the initial weights and of the top-k's noise.

    Raises:
        UserError: if examples are not flat, a size is not positive, or the skip is unknown.
    """

    def __init__(
        self,
        example_shape: tuple[int, ...],
        outputs: int,
        *,
        width: int = 256,
        depth: int = 2,
        skip: Literal["add", "concat", "head"] = "add",
        activation: ActivationName = "relu",
        topk: float = 0.5,
        topk_mode: Literal["gumbel", "hard"] = "gumbel",
        rngs: nnx.Rngs,
    ):
        features = require_flat("skip_mlp", example_shape)
        if min(width, depth, outputs) < 1:
            raise grlu.UserError(f"skip_mlp needs a positive width and depth, got {width}, {depth}")
        if skip not in ("add", "concat", "head"):
            raise grlu.UserError(f"skip must be one of add, concat, head; got {skip!r}")
        self.skip = skip
        grows = skip == "concat"
        inputs = [features, *(width * (i if grows else 1) for i in range(1, depth))]
        self.layers = nnx.List(dense(fan_in, width, rngs) for fan_in in inputs)
        self.activations = nnx.List(
            make_activation(activation, topk=topk, topk_mode=topk_mode, rngs=rngs)
            for _ in range(depth)
        )
        self.head = dense(width * (1 if skip == "add" else depth), outputs, rngs)

    def encode(self, x: jax.Array) -> jax.Array:
        """Map `x`, shape (B, features), to the head's input before normalisation."""
        h, seen = x, []
        for i, (layer, activate) in enumerate(zip(self.layers, self.activations, strict=True)):
            new = activate(layer(layer_norm(h)))
            seen.append(new)
            if self.skip == "add" and i > 0:
                h = h + new
            elif self.skip == "concat":
                h = jnp.concatenate(seen, axis=-1)
            else:
                h = new
        if self.skip == "head":
            h = jnp.concatenate(seen, axis=-1)
        return h

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `x`, shape (B, features), to logits, shape (B, outputs)."""
        return self.head(layer_norm(self.encode(x)))

"""Multi-layer perceptron of greedy blocks with local losses: no credit travels through depth."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

import grlu
from models.layers import ActivationName, dense, layer_norm, require_flat
from models.layers import activation as make_activation


class LocalMLP(nnx.Module):
    """Hidden layers of equal width, each with its own output head.

    No credit passes from one block to the preceding one: a block learns only from its own head, and
    passes its activity on (Nøkland & Eidnes 2019, arXiv:1901.06656; with perturbation, Ren et al.
    2022, arXiv:2210.03310). Every layer's input is normalised without parameters; weights are
    he-normal.

    Args:
        example_shape: shape of one example, `(features,)`.
        outputs: number of outputs of each head.
        width: units of each hidden layer.
        depth: number of hidden layers, which is the number of heads.
        activation: "relu", "tanh", "gelu" or "topk".
        topk: fraction of the units that win, in (0, 1], for activation "topk".
        topk_mode: "gumbel" (winners sampled in training) or "hard".
        rngs: source of the initial weights and of the top-k's noise.

    Raises:
        UserError: if examples are not flat, or a size is not positive.
    """

    def __init__(
        self,
        example_shape: tuple[int, ...],
        outputs: int,
        *,
        width: int = 256,
        depth: int = 2,
        activation: ActivationName = "relu",
        topk: float = 0.5,
        topk_mode: Literal["gumbel", "hard"] = "gumbel",
        rngs: nnx.Rngs,
    ):
        features = require_flat("local_mlp", example_shape)
        if min(width, depth, outputs) < 1:
            raise grlu.UserError(f"local_mlp needs positive sizes, got {width}, {depth}, {outputs}")
        self.deterministic = False  # set by model.eval()
        self.layers = nnx.List(dense(width if i else features, width, rngs) for i in range(depth))
        self.heads = nnx.List(dense(width, outputs, rngs) for _ in range(depth))
        self.activations = nnx.List(
            make_activation(activation, topk=topk, topk_mode=topk_mode, rngs=rngs)
            for _ in range(depth)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `x`, shape (B, features), to logits.

        Returns:
            In training the logits of all heads, shape (B, depth, outputs); in evaluation those of
            the last head, shape (B, outputs).
        """
        logits, x = [], layer_norm(x)
        for layer, activate, head in zip(self.layers, self.activations, self.heads, strict=True):
            h = layer_norm(activate(layer(x)))
            logits.append(head(h))
            x = jax.lax.stop_gradient(h)
        return logits[-1] if self.deterministic else jnp.stack(logits, axis=1)

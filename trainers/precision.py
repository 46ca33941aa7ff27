"""Training whose products of matrices, and convolutions, are computed in bfloat16.

Parameters, gradients and the optimizer stay in float32, and so do normalisation, what is added up
along a residual stream, and all that an objective computes from a model's output. It is meant for
accelerators: on a CPU XLA widens the rounded numbers again, and a step takes longer, not less
(1.4 times on the machine of the README's figures).
"""

from typing import Any, Literal

import jax.numpy as jnp
from flax import nnx

from models.gpt import GPT

PrecisionName = Literal["float32", "bfloat16"]

# What multiplies: layers with an attribute `dtype`, the type in which they compute.
_MULTIPLY = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.Conv, nnx.ConvTranspose, GPT)


def set_precision(model: Any, precision: PrecisionName) -> None:
    """Has a model's layers, and those of its parts, compute in `precision`; it stays in float32."""
    if precision == "float32":
        return
    for _, module in nnx.iter_modules(model):
        if isinstance(module, _MULTIPLY):
            module.dtype = jnp.bfloat16

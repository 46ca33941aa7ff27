"""Building blocks of the models: activations by name, and a layer norm without parameters."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

import grlu

ActivationName = Literal["relu", "tanh", "gelu", "topk"]

_FIXED: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nnx.relu,
    "tanh": jnp.tanh,
    "gelu": grlu.activation(nnx.gelu),
}


class Fixed(nnx.Module):
    """Stateless activation, by name."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, z: jax.Array) -> jax.Array:
        return _FIXED[self.name](z)


def activation(
    name: ActivationName, *, topk: float, topk_mode: Literal["gumbel", "hard"], rngs: nnx.Rngs
) -> nnx.Module:
    """Return the named activation; a top-k gets its fraction of winners and its own PRNG stream.

    Raises:
        UserError: if the name is unknown.
    """
    if name == "topk":
        return grlu.TopK(topk, topk_mode, rngs=rngs)
    if name not in _FIXED:
        raise grlu.UserError(f"activation must be one of {', '.join(_FIXED)}, topk; got {name!r}")
    return Fixed(name)


def dense(fan_in: int, units: int, rngs: nnx.Rngs) -> nnx.Linear:
    """Return a dense layer with he-normal weights and zero biases."""
    return nnx.Linear(fan_in, units, kernel_init=nnx.initializers.he_normal(), rngs=rngs)


def precise(x: jax.Array) -> jax.Array:
    """Cast `x` to float32 if it has fewer bits, as outputs of bfloat16 layers do."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def layer_norm(x: jax.Array) -> jax.Array:
    """Normalise over the last axis without parameters: (x - mean) / (std + 1e-8).

    The standard deviation is that of the population. A constant input gives zeros and a zero
    gradient, although the square root has no gradient there.
    """
    x = precise(x)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred / (jnp.sqrt(jnp.maximum(variance, 1e-16)) + 1e-8)


def require_flat(name: str, example_shape: tuple[int, ...] | list[int]) -> int:
    """Return the number of features of a flat example.

    Raises:
        UserError: if the examples have several axes.
    """
    if len(example_shape) != 1:
        raise grlu.UserError(
            f"{name} takes flat examples, the data's have shape {tuple(example_shape)}; "
            "set dataset.flatten=true"
        )
    return example_shape[0]

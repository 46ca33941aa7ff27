"""Encoders to a posterior's mean and log variance, and decoders; any encoder fits any decoder."""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from models.convolution import Downwards, Upwards
from models.layers import ActivationName
from models.layers import activation as make_activation


class DenseEncoder(nnx.Module):
    """Encoder of dense layers, for examples of any shape."""

    def __init__(
        self,
        example_shape: tuple[int, ...],
        latent: int,
        *,
        hidden: tuple[int, ...],
        activation: ActivationName,
        rngs: nnx.Rngs,
    ):
        self.axes = len(example_shape)
        self.layers, self.activations = _stack(math.prod(example_shape), hidden, activation, rngs)
        self.heads = _linear((math.prod(example_shape), *hidden)[-1], 2 * latent, rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map `x`, shape (B, *example_shape), to mean and log variance, each (B, latent)."""
        h = x.reshape(*x.shape[: x.ndim - self.axes], -1)
        for layer, activate in zip(self.layers, self.activations, strict=True):
            h = activate(layer(h))
        mean, log_variance = jnp.split(self.heads(h), 2, axis=-1)
        return mean, log_variance


class DenseDecoder(nnx.Module):
    """Decoder of dense layers to logits or means of an example's shape."""

    def __init__(
        self,
        example_shape: tuple[int, ...],
        latent: int,
        *,
        hidden: tuple[int, ...],
        activation: ActivationName,
        rngs: nnx.Rngs,
    ):
        self.example_shape = tuple(example_shape)
        self.layers, self.activations = _stack(latent, hidden, activation, rngs)
        self.out = _linear((latent, *hidden)[-1], math.prod(example_shape), rngs)

    def __call__(self, z: jax.Array) -> jax.Array:
        """Map `z`, shape (..., latent), to shape (..., *example_shape)."""
        h = z
        for layer, activate in zip(self.layers, self.activations, strict=True):
            h = activate(layer(h))
        return self.out(h).reshape(*z.shape[:-1], *self.example_shape)


class ConvEncoder(nnx.Module):
    """Encoder of convolutions of stride 2, for images."""

    def __init__(
        self,
        example_shape: tuple[int, ...],
        latent: int,
        *,
        channels: tuple[int, ...],
        activation: ActivationName,
        rngs: nnx.Rngs,
    ):
        self.down = Downwards(
            "a convolutional encoder",
            example_shape,
            channels,
            kernel=4,
            activation=activation,
            topk=0.5,
            rngs=rngs,
        )
        self.heads = _linear(self.down.features, 2 * latent, rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map `x`, (B, height, width, channels), to mean and log variance, each (B, latent)."""
        mean, log_variance = jnp.split(self.heads(self.down(x)), 2, axis=-1)
        return mean, log_variance


class ConvDecoder(nnx.Module):
    """Decoder of a dense layer and transposed convolutions to logits or means of an image."""

    def __init__(
        self,
        example_shape: tuple[int, ...],
        latent: int,
        *,
        channels: tuple[int, ...],
        activation: ActivationName,
        rngs: nnx.Rngs,
    ):
        self.up = Upwards(
            "a convolutional decoder",
            example_shape,
            channels,
            latent,
            kernel=4,
            activation=activation,
            topk=0.5,
            rngs=rngs,
        )

    def __call__(self, z: jax.Array) -> jax.Array:
        """Map `z`, shape (..., latent), to shape (..., height, width, channels)."""
        return self.up(z)


def _linear(fan_in: int, units: int, rngs: nnx.Rngs) -> nnx.Linear:
    """Return a dense layer without activation: LeCun-normal weights, zero biases."""
    return nnx.Linear(fan_in, units, rngs=rngs)


def _stack(
    features: int, hidden: tuple[int, ...], activation: ActivationName, rngs: nnx.Rngs
) -> tuple[nnx.List, nnx.List]:
    """Return dense layers and activations; he-normal weights, LeCun-normal before a tanh."""
    init = nnx.initializers.lecun_normal() if activation == "tanh" else nnx.initializers.he_normal()
    layers = nnx.List(
        nnx.Linear(a, b, kernel_init=init, rngs=rngs)
        for a, b in itertools.pairwise((features, *hidden))
    )
    activations = nnx.List(
        make_activation(activation, topk=0.5, topk_mode="hard", rngs=rngs) for _ in hidden
    )
    return layers, activations

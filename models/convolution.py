"""Stacks of convolutions of stride 2, and of transposed convolutions."""

import itertools
import math

import jax
from flax import nnx

import grlu
from models.layers import ActivationName, dense
from models.layers import activation as make_activation


class Downwards(nnx.Module):
    """Convolutions from images to flat features; each halves height and width, rounded up.

    Weights are he-normal, biases zero.

    Attributes:
        features: number of output features.

    Raises:
        UserError: if examples are not images, or channels are not positive.
    """

    def __init__(
        self,
        name: str,
        example_shape: tuple[int, ...],
        channels: tuple[int, ...],
        *,
        kernel: int,
        activation: ActivationName,
        topk: float,
        rngs: nnx.Rngs,
    ):
        middle = shapes(name, example_shape, channels)[-1]
        self.features = math.prod(middle)
        self.layers = nnx.List(
            nnx.Conv(a, b, (kernel, kernel), 2, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
            for a, b in itertools.pairwise((example_shape[-1], *channels))
        )
        self.activations = nnx.List(
            make_activation(activation, topk=topk, topk_mode="hard", rngs=rngs) for _ in channels
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `x`, shape (..., height, width, channels), to features, shape (..., features)."""
        lead = x.shape[:-3]
        for layer, activate in zip(self.layers, self.activations, strict=True):
            x = activate(layer(x))
        return x.reshape(*lead, -1)


class Upwards(nnx.Module):
    """Decoder from a code to images: a dense layer, then the mirror of `Downwards`.

    An activation follows the dense layer, because two linear layers in a row would act as one.
    """

    def __init__(
        self,
        name: str,
        example_shape: tuple[int, ...],
        channels: tuple[int, ...],
        units: int,
        *,
        kernel: int,
        activation: ActivationName,
        topk: float,
        rngs: nnx.Rngs,
    ):
        # Shapes of the images before each convolution, to which the larger outputs are cropped.
        self.shapes = shapes(name, example_shape, channels)
        self.first = dense(units, math.prod(self.shapes[-1]), rngs)
        self.layers = nnx.List(
            nnx.ConvTranspose(
                a, b, (kernel, kernel), 2, kernel_init=nnx.initializers.he_normal(), rngs=rngs
            )
            for a, b in itertools.pairwise((example_shape[-1], *channels)[::-1])
        )
        self.activations = nnx.List(
            make_activation(activation, topk=topk, topk_mode="hard", rngs=rngs) for _ in channels
        )

    def __call__(self, code: jax.Array) -> jax.Array:
        """Map a code, shape (..., units), to an image, shape (..., height, width, channels)."""
        h = self.first(code).reshape(*code.shape[:-1], *self.shapes[-1])
        for layer, activate, (height, width, _) in zip(
            self.layers, self.activations, self.shapes[-2::-1], strict=True
        ):
            h = layer(activate(h))[..., :height, :width, :]
        return h


def shapes(
    name: str, example_shape: tuple[int, ...], channels: tuple[int, ...]
) -> tuple[tuple[int, int, int], ...]:
    """Return the shapes (height, width, channels) of the image and of each convolution's output.

    Raises:
        UserError: if examples are not images, or channels are not positive.
    """
    if len(example_shape) != 3:
        raise grlu.UserError(
            f"{name} takes images (height, width, channels), the data's examples have shape "
            f"{tuple(example_shape)}; set dataset.flatten=false"
        )
    if min(channels, default=1) < 1:
        raise grlu.UserError(f"{name} needs positive channels, got {channels}")
    height, width, depth = example_shape
    return tuple(
        (-(-height // 2**i), -(-width // 2**i), each) for i, each in enumerate((depth, *channels))
    )

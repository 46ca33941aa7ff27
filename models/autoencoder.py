"""Dense and convolutional autoencoders."""

import itertools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

import grlu
from models.convolution import Downwards, Upwards
from models.layers import ActivationName, dense, require_flat
from models.layers import activation as make_activation

LatentName = Literal["linear", "relu", "topk"]


class Masking(nnx.Module):
    """Layer that sets a random fraction of the features to 0 in training (Vincent et al. 2008).

    The mask comes from the module's own PRNG stream, which a learning rule reseeds.
    """

    def __init__(self, fraction: float, *, rngs: nnx.Rngs):
        if not 0 <= fraction < 1:
            raise grlu.UserError(f"denoise must lie in [0, 1), got {fraction}")
        self.fraction = fraction
        self.deterministic = False
        self.rngs = rngs.fork() if fraction else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Mask `x`, of any shape."""
        if self.rngs is None or self.deterministic:
            return x
        return x * jax.random.bernoulli(self.rngs(), 1 - self.fraction, x.shape).astype(x.dtype)


class _Latent(nnx.Module):
    """Activation of a latent code."""

    def __init__(self, name: LatentName, topk: float, units: int):
        if name not in ("linear", "relu", "topk"):
            raise grlu.UserError(f"latent_activation must be linear, relu or topk; got {name!r}")
        if units < 1:
            raise grlu.UserError(f"latent must be a positive number of units, got {units}")
        self.name = name
        self.winners = grlu.TopK(topk, "hard") if name == "topk" else None

    def __call__(self, z: jax.Array) -> jax.Array:
        if self.winners is not None:
            return self.winners(z)
        return nnx.relu(z) if self.name == "relu" else z


class Autoencoder(nnx.Module):
    """Autoencoder of dense layers, with a mirrored decoder.

    The objective interprets the output as means of a Gaussian or logits of a Bernoulli, per
    feature. Weights are he-normal, biases zero.

    Args:
        example_shape: shape of one example, `(features,)`.
        outputs: ignored: the output has the shape of the input.
        hidden: widths of the encoder's hidden layers, which the decoder mirrors; may be empty.
        latent: units of the code.
        latent_activation: "linear", "relu" or "topk", which keeps the largest units.
        topk: fraction of the units that a "topk" keeps, in (0, 1].
        activation: activation of the hidden layers: "relu", "tanh", "gelu" or "topk".
        tied: use the encoder's transposed kernels in the decoder, with separate biases.
        denoise: fraction of the input's features to set to 0 in training, for the model to
            restore.
        rngs: source of the initial weights and of the masks.

    Raises:
        UserError: if examples are not flat, or a value is out of range.
    """

    def __init__(
        self,
        example_shape: tuple[int, ...],
        outputs: int,
        *,
        hidden: tuple[int, ...] = (256,),
        latent: int = 128,
        latent_activation: LatentName = "linear",
        topk: float = 0.25,
        activation: ActivationName = "relu",
        tied: bool = False,
        denoise: float = 0.0,
        rngs: nnx.Rngs,
    ):
        del outputs
        self.code = _Latent(latent_activation, topk, latent)
        sizes = [require_flat("autoencoder", example_shape), *hidden, latent]
        if min(sizes) < 1:
            raise grlu.UserError(f"autoencoder needs positive layer sizes, got {sizes}")
        self.corrupt = Masking(denoise, rngs=rngs)
        self.encoder = nnx.List(dense(*pair, rngs) for pair in itertools.pairwise(sizes))
        back = sizes[::-1]
        self.tied = tied
        self.decoder = nnx.List(
            dense(*pair, rngs) for pair in itertools.pairwise(back[: 0 if tied else None])
        )
        self.biases = nnx.List(nnx.Param(jnp.zeros(n)) for n in (back[1:] if tied else []))
        # One for each hidden layer of the encoder, then of the decoder.
        self.activations = nnx.List(
            make_activation(activation, topk=topk, topk_mode="hard", rngs=rngs)
            for _ in 2 * tuple(hidden)
        )

    def encode(self, x: jax.Array) -> jax.Array:
        """Map `x`, shape (B, features), to its code, shape (B, latent), without corruption."""
        for layer, activate in zip(self.encoder[:-1], self.activations, strict=False):
            x = activate(layer(x))
        return self.code(self.encoder[-1](x))

    def decode(self, code: jax.Array) -> jax.Array:
        """Map a code, shape (B, latent), to means or logits, shape (B, features)."""
        h, layers = code, len(self.encoder)
        for i in range(layers):
            h = self._decoded(i, h)
            if i < layers - 1:
                h = self.activations[layers - 1 + i](h)
        return h

    def __call__(self, x: jax.Array) -> jax.Array:
        """Reconstruct `x`, shape (B, features), in training from a corrupted copy."""
        return self.decode(self.encode(self.corrupt(x)))

    def _decoded(self, i: int, h: jax.Array) -> jax.Array:
        if not self.tied:
            return self.decoder[i](h)
        layer = self.encoder[-1 - i]
        h, kernel, bias = nnx.nn.dtypes.promote_dtype(
            (h, layer.kernel[...], self.biases[i][...]), dtype=layer.dtype
        )
        return h @ kernel.T + bias[None]


class ConvAutoencoder(nnx.Module):
    """Autoencoder of 3x3 convolutions of stride 2 around a dense latent code.

    The objective interprets the output as means of a Gaussian or logits of a Bernoulli, per pixel.
    Weights are he-normal, biases zero.

    Args:
        example_shape: shape of one image, `(height, width, channels)`.
        outputs: ignored: the output has the shape of the input.
        channels: channels of the encoder's convolutions, which the decoder mirrors; may be empty.
        latent: units of the code.
        latent_activation: "linear", "relu" or "topk", which keeps the largest units.
        topk: fraction of the units that a "topk" keeps, in (0, 1].
        activation: activation of the convolutions: "relu", "tanh", "gelu" or "topk" (over the
            channels).
        denoise: fraction of the input's values to set to 0 in training, for the model to restore.
        rngs: source of the initial weights and of the masks.

    Raises:
        UserError: if examples are not images, or a value is out of range.
    """

    def __init__(
        self,
        example_shape: tuple[int, ...],
        outputs: int,
        *,
        channels: tuple[int, ...] = (16, 32),
        latent: int = 128,
        latent_activation: LatentName = "linear",
        topk: float = 0.25,
        activation: ActivationName = "relu",
        denoise: float = 0.0,
        rngs: nnx.Rngs,
    ):
        del outputs
        self.code = _Latent(latent_activation, topk, latent)
        self.corrupt = Masking(denoise, rngs=rngs)
        name = "conv_autoencoder"
        options: Any = {"kernel": 3, "activation": activation, "topk": topk, "rngs": rngs}
        self.down = Downwards(name, example_shape, channels, **options)
        self.to_code = dense(self.down.features, latent, rngs)
        self.up = Upwards(name, example_shape, channels, latent, **options)

    def encode(self, x: jax.Array) -> jax.Array:
        """Map `x`, shape (B, height, width, channels), to its code, shape (B, latent)."""
        return self.code(self.to_code(self.down(x)))

    def decode(self, code: jax.Array) -> jax.Array:
        """Map a code, shape (B, latent), to means or logits of the images' shape."""
        return self.up(code)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Reconstruct `x`, (B, height, width, channels), in training from a corrupted copy."""
        return self.decode(self.encode(self.corrupt(x)))

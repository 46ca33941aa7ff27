"""Variational autoencoders with any encoder and decoder.

Source: Kingma & Welling (2014), "Auto-encoding variational Bayes", arXiv:1312.6114.
"""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

import grlu
from models.coders import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder
from models.densities import log_bernoulli, log_normal
from models.layers import ActivationName, precise

LikelihoodName = Literal["bernoulli", "gaussian", "learned"]
BackboneName = Literal["mlp", "conv"]

LOG_VARIANCES = (-12.0, 8.0)
"""Bounds of the posterior's log variance, for standard deviations from 0.0025 to 55."""


class Posterior(NamedTuple):
    """Diagonal Gaussian for each example.

    Attributes:
        mean: shape (B, latent).
        log_variance: shape (B, latent), within `LOG_VARIANCES`.
        clamped: number of an example's log variances outside these bounds, shape (B,).
    """

    mean: jax.Array
    log_variance: jax.Array
    clamped: jax.Array

    def draw(self, key: jax.Array, samples: int | None = None) -> jax.Array:
        """Sample one code per example, (B, latent), or several, (B, samples, latent)."""
        batch, latent = self.mean.shape
        mean, log_variance = self.mean, self.log_variance
        shape: tuple[int, ...] = (batch, latent)
        if samples is not None:
            mean, log_variance = mean[:, None], log_variance[:, None]
            shape = (batch, samples, latent)
        return mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key, shape)


def clamp(log_variance: jax.Array) -> jax.Array:
    """Clamp `log_variance` to `LOG_VARIANCES`, with a straight-through gradient."""
    inside = jnp.clip(log_variance, *LOG_VARIANCES)
    return log_variance + jax.lax.stop_gradient(inside - log_variance)


class VAE(nnx.Module):
    """Variational autoencoder with a Gaussian posterior and a standard normal prior.

    Args:
        encoder: examples -> (mean, log variance), each (B, latent).
        decoder: codes (..., latent) -> logits or means (..., *example_shape).
        example_shape: shape of one example.
        latent: units of the code.
        likelihood: "bernoulli" (the decoder gives logits of pixels in [0, 1]), "gaussian" (means,
            with the standard deviation `sd`), or "learned": Gaussian with one learned standard
            deviation for all features, initially `sd` (Rybkin et al. 2021, arXiv:2006.13202).
        sd: standard deviation of the Gaussian, in units of the input.
        rngs: source of the samples in training.

    Raises:
        UserError: if a value is out of range.
    """

    def __init__(
        self,
        encoder: nnx.Module,
        decoder: nnx.Module,
        example_shape: tuple[int, ...],
        *,
        latent: int,
        likelihood: LikelihoodName,
        sd: float,
        rngs: nnx.Rngs,
    ):
        if likelihood not in ("bernoulli", "gaussian", "learned"):
            raise grlu.UserError(
                f"likelihood must be bernoulli, gaussian or learned; got {likelihood!r}"
            )
        if not sd > 0:
            raise grlu.UserError(f"sd must be positive, got {sd!r}")
        self.encoder, self.decoder = encoder, decoder
        self.example_shape, self.latent = tuple(example_shape), latent
        self.likelihood, self.sd = likelihood, sd
        self.log_sd = nnx.Param(jnp.full((1,), math.log(sd))) if likelihood == "learned" else None
        self.deterministic = False  # set by model.eval()
        self.rngs = rngs.fork()

    def posterior(self, x: jax.Array) -> Posterior:
        """Return q(z | x) for `x` of shape (B, *example_shape)."""
        mean, raw = map(precise, self.encoder(x))
        log_variance = clamp(raw)
        beyond = (raw < LOG_VARIANCES[0]) | (raw > LOG_VARIANCES[1])
        return Posterior(mean, log_variance, jnp.sum(beyond, -1).astype(mean.dtype))

    def encode(self, x: jax.Array) -> jax.Array:
        """Return the posterior's mean, shape (B, latent), the features for downstream models."""
        return self.posterior(x).mean

    def decode(self, z: jax.Array) -> jax.Array:
        """Return logits or means, shape (..., *example_shape), of codes (..., latent)."""
        return precise(self.decoder(z))

    def log_likelihood(self, x: jax.Array, z: jax.Array) -> jax.Array:
        """Return log p(x | z) in nats, summed over features.

        Args:
            x: examples, shape (B, *example_shape).
            z: one code per example, (B, latent), or several, (B, samples, latent).

        Returns:
            Log-likelihoods, shape (B,) or (B, samples).
        """
        out = self.decode(z)
        target = x if z.ndim == 2 else x[:, None]
        if self.likelihood == "bernoulli":
            nats = log_bernoulli(target, out)
        else:
            nats = log_normal(target, out, self._log_variance(out.ndim))
        return jnp.sum(nats, tuple(range(z.ndim - 1, out.ndim)))

    def expected(self, out: jax.Array) -> jax.Array:
        """Return the expected example, given the decoder's output: logits or means."""
        return nnx.sigmoid(out) if self.likelihood == "bernoulli" else out

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits or means at a posterior sample in training, at its mean in evaluation."""
        posterior = self.posterior(x)
        return self.decode(posterior.mean if self.deterministic else posterior.draw(self.rngs()))

    def reconstruct(self, x: jax.Array) -> jax.Array:
        """Return the expected example at the posterior's mean, in the shape of `x`."""
        return self.expected(self.decode(self.encode(x)))

    def sample(self, key: jax.Array, count: int) -> jax.Array:
        """Return expected examples at `count` prior samples, shape (count, *example_shape)."""
        return self.expected(self.decode(jax.random.normal(key, (count, self.latent))))

    def interpolate(self, one: jax.Array, other: jax.Array, steps: int) -> jax.Array:
        """Return expected examples on straight lines between the codes of pairs of examples.

        Args:
            one: start of each line, shape (B, *example_shape).
            other: end of each line, shape (B, *example_shape).
            steps: number of points on each line, including both ends.

        Returns:
            Expected examples, shape (B, steps, *example_shape).
        """
        weight = jnp.linspace(0, 1, steps)[None, :, None]
        line = (1 - weight) * self.encode(one)[:, None] + weight * self.encode(other)[:, None]
        return self.expected(self.decode(line))

    def _log_variance(self, ndim: int) -> jax.Array:
        if self.log_sd is None:
            return jnp.full((1,) * ndim, 2 * math.log(self.sd))
        return 2 * self.log_sd[...].reshape((1,) * ndim)


def vae_mlp(
    example_shape: tuple[int, ...],
    outputs: int,
    *,
    latent: int = 15,
    encoder_hidden: tuple[int, ...] = (512, 256),
    decoder_hidden: tuple[int, ...] = (256, 512),
    encoder_activation: ActivationName = "tanh",
    decoder_activation: ActivationName = "relu",
    likelihood: LikelihoodName = "bernoulli",
    sd: float = 1.0,
    rngs: nnx.Rngs,
) -> VAE:
    """Return a variational autoencoder of dense layers; see `ivae`."""
    return ivae(
        example_shape,
        outputs,
        latent=latent,
        encoder_hidden=encoder_hidden,
        decoder_hidden=decoder_hidden,
        encoder_activation=encoder_activation,
        decoder_activation=decoder_activation,
        likelihood=likelihood,
        sd=sd,
        rngs=rngs,
    )


def vae_conv(
    example_shape: tuple[int, ...],
    outputs: int,
    *,
    latent: int = 15,
    encoder_channels: tuple[int, ...] = (32, 64),
    decoder_channels: tuple[int, ...] = (64, 32),
    encoder_activation: ActivationName = "relu",
    decoder_activation: ActivationName = "relu",
    likelihood: LikelihoodName = "bernoulli",
    sd: float = 1.0,
    rngs: nnx.Rngs,
) -> VAE:
    """Return a variational autoencoder of 4x4 convolutions of stride 2; see `ivae`."""
    return ivae(
        example_shape,
        outputs,
        encoder="conv",
        decoder="conv",
        latent=latent,
        encoder_channels=encoder_channels,
        decoder_channels=decoder_channels,
        encoder_activation=encoder_activation,
        decoder_activation=decoder_activation,
        likelihood=likelihood,
        sd=sd,
        rngs=rngs,
    )


def ivae(
    example_shape: tuple[int, ...],
    outputs: int,
    *,
    encoder: BackboneName = "mlp",
    decoder: BackboneName = "mlp",
    latent: int = 15,
    encoder_hidden: tuple[int, ...] = (512, 256),
    decoder_hidden: tuple[int, ...] = (256, 512),
    encoder_channels: tuple[int, ...] = (32, 64),
    decoder_channels: tuple[int, ...] = (64, 32),
    encoder_activation: ActivationName = "tanh",
    decoder_activation: ActivationName = "relu",
    likelihood: LikelihoodName = "bernoulli",
    sd: float = 1.0,
    rngs: nnx.Rngs,
) -> VAE:
    """Return a variational autoencoder for iterative inference (trainer svi), of either backbone.

    Args:
        example_shape: shape of one example; an image for a convolutional backbone.
        outputs: ignored: the output has the shape of the input.
        encoder: "mlp" or "conv".
        decoder: "mlp" or "conv", independent of the encoder.
        latent: units of the code.
        encoder_hidden: widths of a dense encoder's hidden layers; may be empty.
        decoder_hidden: widths of a dense decoder's hidden layers, from the code to the example.
        encoder_channels: channels of a convolutional encoder.
        decoder_channels: channels of a convolutional decoder, from the code to the image.
        encoder_activation: "relu", "tanh", "gelu" or "topk" (keeps the larger half).
        decoder_activation: as `encoder_activation`, for the decoder.
        likelihood: "bernoulli", "gaussian" or "learned", as in `VAE`.
        sd: standard deviation of a Gaussian likelihood; its initial value if learned.
        rngs: source of the initial weights and of the samples.

    Raises:
        UserError: if there are more latents than features, or a size is not positive.
    """
    del outputs
    features = math.prod(example_shape)
    if not 1 <= latent <= features:
        raise grlu.UserError(
            f"latent must be between 1 and the {features} features of an example, got {latent}"
        )
    for name, sizes in (("encoder_hidden", encoder_hidden), ("decoder_hidden", decoder_hidden)):
        if min(sizes, default=1) < 1:
            raise grlu.UserError(f"{name} must be positive layer sizes, got {sizes}")
    down: nnx.Module
    up: nnx.Module
    if encoder == "mlp":
        down = DenseEncoder(
            example_shape, latent, hidden=encoder_hidden, activation=encoder_activation, rngs=rngs
        )
    else:
        down = ConvEncoder(
            example_shape,
            latent,
            channels=encoder_channels,
            activation=encoder_activation,
            rngs=rngs,
        )
    if decoder == "mlp":
        up = DenseDecoder(
            example_shape, latent, hidden=decoder_hidden, activation=decoder_activation, rngs=rngs
        )
    else:
        up = ConvDecoder(
            example_shape,
            latent,
            channels=decoder_channels[::-1],
            activation=decoder_activation,
            rngs=rngs,
        )
    return VAE(down, up, example_shape, latent=latent, likelihood=likelihood, sd=sd, rngs=rngs)

"""Bounds on log p(x) in nats: rewards of variational autoencoders.

The evidence lower bound: Kingma & Welling 2014, arXiv:1312.6114; β: Higgins et al. 2017; free bits:
Kingma et al. 2016, arXiv:1606.04934; the importance-weighted bound: Burda et al. 2016,
arXiv:1509.00519.
"""

import copy
import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from grlu.errors import UserError
from input_pipeline import Data
from models.densities import kl_to_standard, log_normal
from models.vae import VAE, Posterior
from trainers.config.values import require
from trainers.objectives.base import Batch, Better, Objective, Values

# The reward; the bound with β 1; its two terms, the first a mean over samples and the second exact;
# the number of log variances that were clamped.
METRICS = ("reward", "elbo", "reconstruction", "kl", "clamped")

_SAMPLED = 4  # rows of samples in a picture


def log_weights(model: VAE, x: jax.Array, posterior: Posterior, z: jax.Array) -> jax.Array:
    """Return log p(x, z) - log q(z | x), (B, samples), of samples (B, samples, latent)."""
    mean, log_variance = posterior.mean[:, None], posterior.log_variance[:, None]
    zero = jnp.zeros((1, 1, 1))
    prior = log_normal(z, zero, zero)
    return model.log_likelihood(x, z) + jnp.sum(prior - log_normal(z, mean, log_variance), -1)


def iwae_bound(weights: jax.Array) -> jax.Array:
    """Return the log of the mean weight, (B,), of log weights (B, samples)."""
    return jax.nn.logsumexp(weights, axis=-1) - math.log(weights.shape[-1])


def divergence(posterior: Posterior) -> jax.Array:
    """Return KL(q(z | x) ‖ p(z)), (B,)."""
    return jnp.sum(kl_to_standard(posterior.mean, posterior.log_variance), -1)


def terms(model: VAE, x: jax.Array, posterior: Posterior, z: jax.Array) -> Values:
    """Return the ELBO and its terms, (B,), at samples (B, latent) or (B, samples, latent)."""
    likelihood = model.log_likelihood(x, z)
    reconstruction = likelihood if z.ndim == 2 else jnp.mean(likelihood, -1)
    kl = divergence(posterior)
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


class Bound(Objective):
    """Base class of the bounds, for `models.VAE`."""

    metrics: ClassVar[tuple[str, ...]] = METRICS
    generative: ClassVar[bool] = True
    described: ClassVar[str] = (
        "a variational autoencoder of {data}: 'grlu report {run}' shows its images"
    )

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        if not isinstance(model, VAE):
            raise UserError(
                f"trainer.objective={config.trainer.objective} needs a variational autoencoder such"
                f" as vae_mlp, and model.name is {config.model.name}"
            )
        require_pixels(config, "model", model.likelihood)

    def pictures(self, model: VAE, x: jax.Array) -> dict[str, jax.Array]:
        """Return images over their reconstructions, and samples of the prior."""
        samples = model.sample(jax.random.key(0), _SAMPLED * len(x))
        shown = jnp.stack([x, model.reconstruct(x)])
        return {"reconstructions": shown, "samples": samples.reshape(-1, *x.shape)}


@dataclasses.dataclass(frozen=True)
class Elbo(Bound):
    """Rewards a variational autoencoder for E[log p(x | z)] - β KL(q(z | x) ‖ p(z)).

    Attributes:
        latent_samples: samples of the posterior for the expectation.
        beta: weight of the KL divergence.
        free_bits: nats of KL divergence per latent that cost nothing.
        kl_warmup: fraction of the run in which the weight of the KL rises from 0 to `beta`.
    """

    latent_samples: int = 1
    beta: float = 1.0
    free_bits: float = 0.0
    kl_warmup: float = 0.0
    weight: ClassVar[Any] = 1.0  # Fraction of `beta` reached so far (`at`).
    better: ClassVar[Better] = ("elbo", "max")

    def __post_init__(self) -> None:
        require("trainer.latent_samples", self.latent_samples, 1)
        if self.beta < 0 or self.free_bits < 0 or not 0 <= self.kl_warmup <= 1:
            raise UserError(
                "trainer.beta and trainer.free_bits must be at least 0 and trainer.kl_warmup a "
                f"fraction from 0 to 1; got {self.beta:g}, {self.free_bits:g}, {self.kl_warmup:g}"
            )

    def at(self, progress: jax.Array) -> "Elbo":
        if self.kl_warmup == 0:
            return self
        warmed = copy.copy(self)
        object.__setattr__(warmed, "weight", jnp.minimum(1.0, progress / self.kl_warmup))
        return warmed

    def scales(self) -> Values:
        return {"kl_weight": jnp.asarray(self.beta * self.weight)} if self.kl_warmup else {}

    def reward(self, found: Values, posterior: Posterior) -> jax.Array:
        """Return the rewards (B,) from the terms of the bound."""
        kl = found["kl"]
        if self.free_bits:
            each = kl_to_standard(posterior.mean, posterior.log_variance)
            kl = jnp.sum(jnp.maximum(each, self.free_bits), -1)
        return found["reconstruction"] - self.weight * self.beta * kl

    def __call__(self, model: VAE, batch: Batch) -> tuple[jax.Array, Values]:
        x = batch["image"]
        posterior = model.posterior(x)
        z = posterior.draw(model.rngs(), self.latent_samples if self.latent_samples > 1 else None)
        found = terms(model, x, posterior, z)
        rewards = self.reward(found, posterior)
        return rewards, {"reward": rewards, **found, "clamped": posterior.clamped}


@dataclasses.dataclass(frozen=True)
class Iwae(Bound):
    """Rewards a `models.VAE` for the log of the mean of k importance weights.

    Attributes:
        latent_samples: k; 1 gives the ELBO with a sampled KL divergence.
    """

    latent_samples: int = 1
    better: ClassVar[Better] = ("reward", "max")

    def __post_init__(self) -> None:
        require("trainer.latent_samples", self.latent_samples, 1)

    def __call__(self, model: VAE, batch: Batch) -> tuple[jax.Array, Values]:
        x = batch["image"]
        posterior = model.posterior(x)
        z = posterior.draw(model.rngs(), self.latent_samples)
        weights = log_weights(model, x, posterior, z)
        rewards = iwae_bound(weights)
        kl = divergence(posterior)
        elbo = jnp.mean(weights, -1)
        found = {"elbo": elbo, "reconstruction": elbo + kl, "kl": kl}
        return rewards, {"reward": rewards, **found, "clamped": posterior.clamped}


def require_pixels(config: ConfigDict, section: str, likelihood: str) -> None:
    """Raise UserError if a section's Bernoulli likelihood meets pixels outside [0, 1]."""
    unit = "features" not in config and config.dataset.get("normalize", "unit") == "unit"
    if likelihood == "bernoulli" and not unit:
        raise UserError(
            f"{section}.likelihood=bernoulli needs pixels in [0, 1]: set dataset.normalize=unit, "
            f"or {section}.likelihood=gaussian"
        )

"""What a variational autoencoder is rewarded for: bounds on log p(x), in nats by example.

The evidence lower bound: Kingma & Welling 2014, arXiv:1312.6114; β: Higgins et al. 2017; free bits:
Kingma et al. 2016, arXiv:1606.04934; the importance-weighted bound: Burda et al. 2016,
arXiv:1509.00519.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from grlu.errors import UserError
from input_pipeline import Data
from models.densities import kl_to_standard, log_normal
from models.vae import VAE, Posterior
from trainers.objective import Objective

METRICS = ("reward", "elbo", "reconstruction", "kl", "clamped")
"""Per example: what is learned by; the bound itself, with β 1; its two terms, the first a mean over
samples, the second exact; and how many log variances were clamped."""

Values = dict[str, jax.Array]


def log_weights(model: VAE, x: jax.Array, posterior: Posterior, z: jax.Array) -> jax.Array:
    """log p(x, z) - log q(z | x), shape (B, samples), of samples (B, samples, latent)."""
    mean, log_variance = posterior.mean[:, None], posterior.log_variance[:, None]
    prior = log_normal(z, jnp.zeros(()).reshape(1, 1, 1), jnp.zeros(()).reshape(1, 1, 1))
    return model.log_likelihood(x, z) + jnp.sum(prior - log_normal(z, mean, log_variance), -1)


def iwae_bound(weights: jax.Array) -> jax.Array:
    """log of the mean weight, shape (B,), of log weights (B, samples)."""
    return jax.nn.logsumexp(weights, axis=-1) - math.log(weights.shape[-1])


def divergence(posterior: Posterior) -> jax.Array:
    """KL(q(z | x) ‖ p(z)), shape (B,)."""
    return jnp.sum(kl_to_standard(posterior.mean, posterior.log_variance), -1)


def terms(model: VAE, x: jax.Array, posterior: Posterior, z: jax.Array) -> Values:
    """The ELBO and its terms, (B,), at samples of shape (B, latent) or (B, samples, latent)."""
    likelihood = model.log_likelihood(x, z)
    reconstruction = likelihood if z.ndim == 2 else jnp.mean(likelihood, -1)
    kl = divergence(posterior)
    return {"elbo": reconstruction - kl, "reconstruction": reconstruction, "kl": kl}


class _Bound(Objective):
    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        """Raises UserError if it is no variational autoencoder, or of other pixels."""
        if not isinstance(model, VAE):
            raise UserError(
                f"trainer.objective={config.trainer.objective} needs a variational autoencoder such"
                f" as vae_mlp, and model.name is {config.model.name}"
            )
        require_pixels(config, "model", model.likelihood)


@dataclasses.dataclass(frozen=True)
class Elbo(_Bound):
    """Rewards a `models.VAE` for E[log p(x | z)] - β KL(q(z | x) ‖ p(z)).

    Attributes:
        latent_samples: draws of the posterior for the expectation.
        beta: weight of the divergence.
        free_bits: nats of each latent's divergence that cost nothing more to use.
        kl_warmup: share of the run in which the divergence's weight rises from 0 to `beta`.
        weight: share of `beta` that is reached (`at`).
        metrics: names of the values reported per example.
        better: the metric that chooses checkpoints, and its direction.

    Raises:
        UserError: if a value is out of range.
    """

    latent_samples: int = 1
    beta: float = 1.0
    free_bits: float = 0.0
    kl_warmup: float = 0.0
    weight: Any = 1.0
    metrics: ClassVar[tuple[str, ...]] = METRICS
    better: ClassVar[tuple[str, Literal["min", "max"]]] = ("elbo", "max")

    def __post_init__(self) -> None:
        _require_samples(self.latent_samples)
        if self.beta < 0 or self.free_bits < 0 or not 0 <= self.kl_warmup <= 1:
            raise UserError(
                "trainer.beta and trainer.free_bits must be at least 0 and trainer.kl_warmup a "
                f"share from 0 to 1; got {self.beta:g}, {self.free_bits:g}, {self.kl_warmup:g}"
            )

    def at(self, progress: jax.Array) -> "Elbo":
        """The objective when this share of the run, from 0 to 1, is done."""
        if self.kl_warmup == 0:
            return self
        weight = jnp.minimum(1.0, progress / self.kl_warmup)
        return dataclasses.replace(self, weight=weight)

    def scales(self) -> dict[str, jax.Array]:
        """What changes in the course of a run, for the log."""
        return {"kl_weight": jnp.asarray(self.beta * self.weight)} if self.kl_warmup else {}

    def reward(self, found: Values, posterior: Posterior) -> jax.Array:
        """The reward of an example, from the terms of its bound."""
        kl = found["kl"]
        if self.free_bits:
            each = kl_to_standard(posterior.mean, posterior.log_variance)
            kl = jnp.sum(jnp.maximum(each, self.free_bits), -1)
        return found["reconstruction"] - self.weight * self.beta * kl

    def __call__(self, model: VAE, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Values]:
        x = batch["image"]
        posterior = model.posterior(x)
        z = posterior.draw(model.rngs(), self.latent_samples if self.latent_samples > 1 else None)
        found = terms(model, x, posterior, z)
        rewards = self.reward(found, posterior)
        return rewards, {"reward": rewards, **found, "clamped": posterior.clamped}


@dataclasses.dataclass(frozen=True)
class Iwae(_Bound):
    """Rewards a `models.VAE` for the log of the mean of k importance weights.

    Attributes:
        latent_samples: k; with 1 it is the ELBO with a sampled divergence.
        metrics: names of the values reported per example; the reward is the bound.
        better: the metric that chooses checkpoints, and its direction.

    Raises:
        UserError: if there is no sample.
    """

    latent_samples: int = 1
    metrics: ClassVar[tuple[str, ...]] = METRICS
    better: ClassVar[tuple[str, Literal["min", "max"]]] = ("reward", "max")

    def __post_init__(self) -> None:
        _require_samples(self.latent_samples)

    def __call__(self, model: VAE, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Values]:
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
    """Raises UserError where a Bernoulli likelihood, a key of `section`, is of other than pixels
    in [0, 1]."""
    unit = "features" not in config and config.dataset.get("normalize", "unit") == "unit"
    if likelihood == "bernoulli" and not unit:
        raise UserError(
            f"{section}.likelihood=bernoulli needs pixels in [0, 1]: set dataset.normalize=unit, "
            f"or {section}.likelihood=gaussian"
        )


def _require_samples(samples: int) -> None:
    if samples < 1:
        raise UserError(f"trainer.latent_samples must be at least 1, got {samples}")

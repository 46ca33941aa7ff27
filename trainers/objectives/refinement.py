"""Iterative inference (SVI): gradient steps on each example's posterior, then learning from it.

Hoffman et al. 2013, arXiv:1206.7051; starting from an encoder's posterior, and with the gradient
through the loop ("e2e"): Kim et al. 2018, arXiv:1802.02550.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from grlu.errors import UserError
from models.densities import kl_between
from models.vae import LOG_VARIANCES, VAE, Posterior
from trainers.config.values import require
from trainers.objectives.base import Batch, Better, Values
from trainers.objectives.elbo import METRICS, Bound, Elbo, divergence, terms

Mode = Literal["decoupled", "kl", "e2e"]
TRUSTED = 1.0  # Largest natural step of a posterior, in nats of KL to second order.


@dataclasses.dataclass(frozen=True)
class Refinement:
    """Ascent on the ELBO in a posterior's mean and log variance, with new samples every step.

    The rate is for the gradient of an example's own ELBO, not of the batch's mean.

    Attributes:
        steps: number of steps.
        learning_rate: size of the steps.
        momentum: fraction of the preceding step that is kept.
        clip: largest norm of an example's gradient, or None.
        natural: use natural gradients, scaled by the posterior's own variance: stable at one rate,
            below 1, for narrow and wide posteriors. Steps are limited to `TRUSTED` nats, which
            prevents divergence on images unlike the training images.
        draws: samples of the posterior per step.
        schedule: learning rate schedule: "constant", or "linear" to zero, which reduces the
            sampling noise of the result.
    """

    steps: int = 20
    learning_rate: float = 1e-2
    momentum: float = 0.0
    clip: float | None = None
    natural: bool = False
    draws: int = 1
    schedule: Literal["constant", "linear"] = "constant"

    def __post_init__(self) -> None:
        require("trainer.svi_steps", self.steps, 1)
        require("trainer.svi_learning_rate", self.learning_rate, 0)
        require("trainer.svi_momentum", self.momentum, 0, 1)
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"trainer.svi_clip must be positive or null, got {self.clip:g}")
        if self.schedule not in ("constant", "linear"):
            raise UserError(
                f"trainer.svi_schedule must be constant or linear, got {self.schedule!r}"
            )

    def __call__(
        self, model: VAE, x: jax.Array, begin: Posterior, key: jax.Array, reward: Any = None
    ) -> tuple[Posterior, Values]:
        """Refine the posteriors of `x` in one scan, differentiable in `model` and `begin`.

        The value to maximise is `reward(terms of the bound, posterior)`, (B,), or the ELBO.

        Returns:
            The last posteriors, and the values before each step: "elbo" (steps, B), "mean" and
            "log_variance" (steps, B, latent).
        """
        graphdef, state = nnx.split(model)
        draws = self.draws if self.draws > 1 else None

        def raised(where: tuple[jax.Array, jax.Array], key: jax.Array) -> Any:
            posterior = begin._replace(mean=where[0], log_variance=where[1])
            alike = nnx.merge(graphdef, state, copy=True)
            found = terms(alike, x, posterior, posterior.draw(key, draws))
            return jnp.sum(reward(found, posterior) if reward else found["elbo"]), found["elbo"]

        def step(carry: Any, at: tuple[jax.Array, jax.Array]) -> Any:
            (where, velocity), (key, rate) = carry, at
            slope, elbo = jax.grad(raised, has_aux=True)(where, key)
            slope = self._scaled(slope, where)
            velocity = jax.tree.map(lambda v, g: self.momentum * v + g, velocity, slope)
            move = jax.tree.map(lambda v: rate * v, velocity)
            if self.natural:
                move = _trusted(move, where)
            mean, log_variance = jax.tree.map(jnp.add, where, move)
            moved = mean, jnp.clip(log_variance, *LOG_VARIANCES)
            return (moved, velocity), {"elbo": elbo, "mean": where[0], "log_variance": where[1]}

        where = begin.mean, begin.log_variance
        start = where, jax.tree.map(jnp.zeros_like, where)
        rates = jnp.full(self.steps, self.learning_rate)
        if self.schedule == "linear":
            rates *= 1 - jnp.arange(self.steps) / self.steps
        keys = jax.random.split(key, self.steps)
        ((mean, log_variance), _), path = jax.lax.scan(step, start, (keys, rates))
        return begin._replace(mean=mean, log_variance=log_variance), path

    def _scaled(self, slope: Any, where: Any) -> Any:
        if self.natural:
            # The inverse Fisher information of a Gaussian in its mean and in its log variance.
            slope = slope[0] * jnp.exp(where[1]), 2 * slope[1]
        if self.clip is None:
            return slope
        square = sum(jnp.sum(jnp.square(each), -1, keepdims=True) for each in slope)
        shrink = jnp.minimum(1.0, self.clip / jnp.sqrt(jnp.maximum(square, 1e-30)))
        return jax.tree.map(lambda each: each * shrink, slope)


def _trusted(move: Any, where: Any) -> Any:
    length = jnp.square(move[0]) * jnp.exp(-where[1]) + 0.5 * jnp.square(move[1])
    moved = 0.5 * jnp.sum(length, -1, keepdims=True)
    shrink = jnp.sqrt(TRUSTED / jnp.maximum(moved, TRUSTED))
    return jax.tree.map(lambda each: each * shrink, move)


@dataclasses.dataclass(frozen=True)
class Refined(Bound):
    """Rewards a `models.VAE` for its bound at refined posteriors, from which the decoder learns.

    The metric "refined" is the ELBO at the refined posterior; all other metrics are the encoder's.

    Attributes:
        bound: objective of the decoder, of the inner loop and, if "decoupled", of the encoder.
        refine: the inner loop.
        mode: learning signal of the encoder, as in `trainers.gradient.settings.SVI`.
    """

    bound: Elbo
    refine: Refinement
    mode: Mode
    metrics: ClassVar[tuple[str, ...]] = (*METRICS, "refined")
    better: ClassVar[Better] = ("refined", "max")

    def at(self, progress: jax.Array) -> "Refined":
        return dataclasses.replace(self, bound=self.bound.at(progress))

    def scales(self) -> Values:
        return self.bound.scales()

    def __call__(self, model: VAE, batch: Batch) -> tuple[jax.Array, Values]:
        x = batch["image"]
        loop, last, first = jax.random.split(model.rngs(), 3)
        guess = model.posterior(x)
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
        frozen = nnx.merge(graphdef, jax.lax.stop_gradient(params), rest, copy=True)
        begin = (model, guess) if self.mode == "e2e" else (frozen, jax.lax.stop_gradient(guess))
        refined, path = self.refine(begin[0], x, begin[1], loop, self.bound.reward)
        at_end = terms(model, x, refined, refined.draw(last))
        rewards = self.bound.reward(at_end, refined)
        at_begin = jax.lax.stop_gradient(path["elbo"][0])
        if self.mode == "decoupled":
            signal = self.bound.reward(terms(frozen, x, guess, guess.draw(first)), guess)
        else:
            pair = guess.mean, guess.log_variance, refined.mean, refined.log_variance
            signal = -jnp.sum(kl_between(*pair), -1)
        if self.mode != "e2e":  # The encoder's signal adds its gradient alone.
            rewards = rewards + signal - jax.lax.stop_gradient(signal)
        kl = divergence(guess)
        return rewards, {
            "reward": rewards,
            "elbo": at_begin,
            "reconstruction": at_begin + kl,
            "kl": kl,
            "clamped": guess.clamped,
            "refined": at_end["elbo"],
        }

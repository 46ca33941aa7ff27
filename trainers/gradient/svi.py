"""Iterative inference: refine each posterior, and learn at the refined one.

"decoupled": the decoder learns at the refined posterior, the encoder by the ordinary ELBO; no
gradient goes through the inner loop. "kl": the encoder learns to predict the refined posterior.
"e2e": the ELBO at the refined posterior, with the gradient through the loop (semi-amortised, Kim et
al. 2018).
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

import grlu
from input_pipeline import Data
from models.densities import kl_between
from models.vae import VAE
from trainers.gradient.settings import GradientSettings
from trainers.objectives.base import Batch, Better, Values
from trainers.objectives.elbo import METRICS, Bound, Elbo, divergence, terms
from trainers.objectives.refinement import Refinement, ScheduleName

Mode = Literal["decoupled", "kl", "e2e"]


@dataclasses.dataclass(frozen=True)
class Refined(Bound):
    """Rewards a `models.VAE` for its bound at refined posteriors.

    The metric "refined" is the ELBO at the refined posterior, the others are the encoder's.

    Attributes:
        bound: objective of the decoder, of the inner loop and, if "decoupled", of the encoder.
        refine: the inner loop.
        mode: learning signal of the encoder.
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
            ordinary = terms(frozen, x, guess, guess.draw(first))
            rewards = _with_gradient_of(rewards, self.bound.reward(ordinary, guess))
        elif self.mode == "kl":
            pair = guess.mean, guess.log_variance, refined.mean, refined.log_variance
            rewards = _with_gradient_of(rewards, -jnp.sum(kl_between(*pair), -1))
        kl = divergence(guess)
        return rewards, {
            "reward": rewards,
            "elbo": at_begin,
            "reconstruction": at_begin + kl,
            "kl": kl,
            "clamped": guess.clamped,
            "refined": at_end["elbo"],
        }


def _with_gradient_of(value: jax.Array, other: jax.Array) -> jax.Array:
    """Return `value` with the gradients of both."""
    return value + other - jax.lax.stop_gradient(other)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SVI(GradientSettings):
    """Iterative inference in a VAE: posteriors refined by gradient steps, then backprop.

    Attributes:
        mode: learning signal of the encoder: "decoupled" (the ordinary ELBO), "kl" (the refined
            posterior) or "e2e" (the ELBO after refinement, with gradients through the loop).
        svi_steps: steps of the inner loop.
        svi_learning_rate: rate of the inner loop, for an example's own ELBO in nats.
        svi_momentum: momentum of the inner loop.
        svi_clip: largest norm of an example's gradient in the inner loop, or None.
        svi_natural: use natural gradients in the inner loop, with a rate below 1.
        svi_schedule: schedule of the inner loop's rate: "constant", or "linear" to zero.
    """

    mode: Mode = "kl"
    svi_steps: int = 20
    svi_learning_rate: float = 1e-2
    svi_momentum: float = 0.0
    svi_clip: float | None = None
    svi_natural: bool = False
    svi_schedule: ScheduleName = "constant"
    objective: Literal["elbo"] = "elbo"

    rule_class: ClassVar[type[grlu.Rule]] = grlu.Backprop
    remedy: ClassVar[str] = (
        "a lower trainer.svi_learning_rate, a trainer.svi_clip or a lower trainer.learning_rate "
        "may help"
    )

    def refinement(self) -> Refinement:
        names = ("steps", "learning_rate", "momentum", "clip", "natural", "schedule")
        return Refinement(**{name: getattr(self, f"svi_{name}") for name in names})

    def make_objective(self, data: Data) -> Refined:
        return Refined(super().make_objective(data), self.refinement(), self.mode)

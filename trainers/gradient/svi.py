"""Iterative inference: refine each posterior, and learn at the refined one.

"decoupled": the decoder learns at the refined posterior, the encoder by the ordinary ELBO; no
gradient goes through the inner loop. "kl": the encoder learns to predict the refined posterior.
"e2e": the ELBO at the refined posterior, with the gradient through the loop (semi-amortised, Kim et
al. 2018).
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

import grlu
from input_pipeline import Data
from models.densities import kl_between
from models.vae import VAE
from trainers.gradient.settings import GradientSettings
from trainers.objectives.base import Batch, Better, Objective, Values
from trainers.objectives.elbo import METRICS, Elbo, divergence, terms
from trainers.objectives.refinement import Refinement, ScheduleName

Mode = Literal["decoupled", "kl", "e2e"]


@dataclasses.dataclass(frozen=True)
class Refined(Objective):
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

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        """Raise UserError if a model does not fit the bound."""
        self.bound.require(config, data, model, answered)

    def pictures(self, model: VAE, x: jax.Array) -> dict[str, jax.Array]:
        """Return the bound's pictures."""
        return self.bound.pictures(model, x)

    def at(self, progress: jax.Array) -> "Refined":
        """Return the objective after a fraction, in [0, 1], of the run."""
        return dataclasses.replace(self, bound=self.bound.at(progress))

    def scales(self) -> Values:
        """Return the bound's scales."""
        return self.bound.scales()

    def __call__(self, model: VAE, batch: Batch) -> tuple[jax.Array, Values]:
        x = batch["image"]
        loop, last, first = jax.random.split(model.rngs(), 3)
        guess = model.posterior(x)
        frozen = _frozen(model)
        begin = guess if self.mode == "e2e" else jax.lax.stop_gradient(guess)
        inner = model if self.mode == "e2e" else frozen
        refined, path = self.refine(inner, x, begin, loop, self.bound.reward)
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


def _frozen(model: VAE) -> VAE:
    """Return the model with parameters without gradients."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return nnx.merge(graphdef, jax.lax.stop_gradient(params), rest, copy=True)


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
        """Return the inner loop."""
        return Refinement(
            self.svi_steps,
            self.svi_learning_rate,
            self.svi_momentum,
            self.svi_clip,
            self.svi_natural,
            schedule=self.svi_schedule,
        )

    def make_objective(self, data: Data) -> Refined:
        """Return the bound at refined posteriors."""
        return Refined(super().make_objective(data), self.refinement(), self.mode)

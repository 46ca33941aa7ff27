"""The trainer of iterative inference: it refines each posterior, and learns from where that leads.

"decoupled": the decoder learns at the refined posterior, the encoder by the ordinary ELBO; nothing
goes through the inner loop. "kl": the encoder chases the refined posterior. "e2e": the ELBO at the
refined posterior, with the gradient through the loop (semi-amortised, Kim et al. 2018).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

import grlu
from input_pipeline import Data
from models.densities import kl_between
from models.vae import VAE
from trainers.objective import Objective
from trainers.refinement import Refinement, ScheduleName
from trainers.rule_settings import GradientSettings
from trainers.variational import METRICS, Elbo, Values, divergence, terms

Mode = Literal["decoupled", "kl", "e2e"]


@dataclasses.dataclass(frozen=True)
class Refined(Objective):
    """Rewards a `models.VAE` for its bound at refined posteriors.

    Attributes:
        bound: the objective of the decoder, of the inner loop and, "decoupled", of the encoder.
        refine: the inner loop.
        mode: from what the encoder learns.
        metrics: those of the encoder's posterior, and "refined", the ELBO at the refined one.
        better: the metric that chooses checkpoints, and its direction.
    """

    bound: Elbo
    refine: Refinement
    mode: Mode
    metrics: ClassVar[tuple[str, ...]] = (*METRICS, "refined")
    better: ClassVar[tuple[str, Literal["min", "max"]]] = ("refined", "max")

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        """Raises UserError if a model does not fit the bound."""
        self.bound.require(config, data, model, answered)

    def at(self, progress: jax.Array) -> "Refined":
        """The objective when this share of the run, from 0 to 1, is done."""
        return dataclasses.replace(self, bound=self.bound.at(progress))

    def scales(self) -> dict[str, jax.Array]:
        """What changes in the course of a run, for the log."""
        return self.bound.scales()

    def __call__(self, model: VAE, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, Values]:
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
    """The model with parameters that no gradient reaches."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return nnx.merge(graphdef, jax.lax.stop_gradient(params), rest, copy=True)


def _with_gradient_of(value: jax.Array, other: jax.Array) -> jax.Array:
    """`value`, with the gradients of both."""
    return value + other - jax.lax.stop_gradient(other)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SVI(GradientSettings):
    """Iterative inference in a VAE: posteriors refined by gradient steps, then backprop.

    Attributes:
        mode: from what the encoder learns: "decoupled" (the ordinary ELBO), "kl" (the refined
            posterior, which it chases) or "e2e" (the ELBO after refinement, through the loop).
        svi_steps: steps of the inner loop.
        svi_learning_rate: of the inner loop, for an example's own ELBO in nats.
        svi_momentum: of the inner loop.
        svi_clip: largest norm of an example's gradient in the inner loop, or None.
        svi_natural: whether the inner loop's gradients are natural ones, at a rate below 1.
        svi_schedule: of the inner loop's rate: "constant", or "linear", falling to nothing.
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
        """The inner loop."""
        return Refinement(
            self.svi_steps,
            self.svi_learning_rate,
            self.svi_momentum,
            self.svi_clip,
            self.svi_natural,
            schedule=self.svi_schedule,
        )

    def make_objective(self, data: Data) -> Refined:
        """The bound at refined posteriors."""
        return Refined(super().make_objective(data), self.refinement(), self.mode)

"""Classification as a contextual bandit: the network answers, and only 0 or 1 comes back."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

import grlu
from grlu.errors import UserError
from grlu.kl import chosen
from input_pipeline import Data
from models.layers import precise
from trainers.config.values import require
from trainers.objectives.base import Batch, Better, Objective, Values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bandit(Objective):
    """Rewards a classifier for an answer sampled from its softmax: 1 if it is right, else 0.

    The label is never used otherwise. With `score_function`, an example has one pull: the answer of
    the clean pass. The rule estimates the gradient of (pull - baseline) x log p(answer), whose
    expectation over the answers is the gradient of the expected reward (Williams 1992, REINFORCE).
    Without it, each noisy pass of an example pulls once, and noise and pulls alone give credit;
    passes share the random numbers of their answers. In evaluation the reward is p(label).

    Attributes:
        score_function: one pull per example instead of one per noisy pass.
        baseline: subtracted from the pull with `score_function`, in [0, 1].
    """

    score_function: bool = True
    baseline: float = 0.0
    metrics: ClassVar[tuple[str, ...]] = ("reward", "accuracy")
    better: ClassVar[Better] = ("accuracy", "max")

    def __post_init__(self) -> None:
        require("trainer.baseline", self.baseline, 0, 1)

    def on(self, data: Data, rule: grlu.Rule) -> "Bandit":
        if self.score_function and not (rule.local or isinstance(rule, grlu.Backprop)):
            raise UserError(
                f"trainer.score_function needs a clean pass, and {type(rule).__name__} has only "
                "noisy ones: set it to false, for one pull per pass"
            )
        if not self.score_function and isinstance(rule, grlu.Backprop):
            raise UserError(
                "a pull of 0 or 1 has no gradient for backprop: set trainer.score_function=true"
            )
        return self

    def prepare(self, model: Any) -> None:
        """Add the PRNG stream of the answers, which a rule reseeds."""
        model.draws = nnx.Rngs(0).default

    def __call__(self, model: Any, batch: Batch) -> tuple[jax.Array, Values]:
        logits, labels = precise(model(batch["image"])), batch["label"]
        gumbel = jax.random.gumbel(model.draws(), logits.shape, logits.dtype)
        held = jax.lax.stop_gradient(logits) if self.score_function else logits
        answer = jnp.argmax(held + gumbel, axis=-1)
        pull = (answer == labels).astype(jnp.float32)
        correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        values = {"reward": pull, "accuracy": correct}
        if not self.score_function:
            return pull, values
        return (pull - self.baseline) * chosen(nnx.log_softmax(logits), answer), values

    def evaluate(self, model: Any, batch: Batch) -> Values:
        logits, labels = precise(model(batch["image"])), batch["label"]
        correct = (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
        return {"reward": chosen(nnx.softmax(logits), labels), "accuracy": correct}

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        if answered.shape[1:] != (data.num_classes,):
            raise UserError(
                f"trainer.objective=bandit needs a model with one logit for each of the "
                f"{data.num_classes} classes; {config.model.name} returns {answered.shape[1:]}"
            )

"""What a run rewards: from a model and a batch to one reward per example, and what to report."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from grlu.errors import UserError
from input_pipeline import Data
from models.layers import precise
from trainers.completion_objective import CompletionSettings
from trainers.fast_learner import FastLearner
from trainers.language import Denoising, LanguageModelling
from trainers.objective import Objective
from trainers.schedules import require
from trainers.variational import Elbo, Iwae, require_pixels

# (logits (B, classes), labels (B,)) -> rewards (B,)
Reward = Callable[[jax.Array, jax.Array], jax.Array]


def log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """log softmax(logits)[label], in nats."""
    return jnp.take_along_axis(nnx.log_softmax(logits), labels[:, None], axis=-1)[:, 0]


def floored_log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """log(softmax(logits)[label] + 1e-10), in nats: the reward of the published algorithm."""
    chosen = jnp.take_along_axis(nnx.softmax(logits), labels[:, None], axis=-1)[:, 0]
    return jnp.log(chosen + 1e-10)


def probability(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """softmax(logits)[label], in [0, 1]: the expected reward of a policy paid 1 if it is right."""
    return jnp.take_along_axis(nnx.softmax(logits), labels[:, None], axis=-1)[:, 0]


# Add your own: `trainers.REWARDS["margin"] = lambda logits, labels: ...`
REWARDS: dict[str, Reward] = {
    "floored_log_likelihood": floored_log_likelihood,
    "log_likelihood": log_likelihood,
    "probability": probability,
}


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Rewards a classifier for its answer to `batch["image"]`, given `batch["label"]`.

    A model with several heads gives logits of shape (B, heads, classes): its reward is the sum over
    the heads, and its answer the last one's.

    Attributes:
        reward: the reward function.
        metrics: names of the values reported per example.
        better: the metric that chooses checkpoints, and its direction.
    """

    reward: Reward
    metrics: ClassVar[tuple[str, ...]] = ("reward", "accuracy")
    better: ClassVar[tuple[str, Literal["min", "max"]]] = ("accuracy", "max")

    def __call__(
        self, model: Any, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits = precise(model(batch["image"]))
        labels = batch["label"]
        if logits.ndim == 3:
            rewards = jnp.sum(jax.vmap(self.reward, (1, None), 1)(logits, labels), axis=1)
            logits = logits[:, -1]
        else:
            rewards = self.reward(logits, labels)
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        return rewards, {"reward": rewards, "accuracy": correct.astype(jnp.float32)}

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        """Raises UserError if there is not an answer for each class."""
        if answered.shape[-1:] != (data.num_classes,):
            raise UserError(
                "trainer.objective=classification needs a model with an answer for each of the "
                f"{data.num_classes} classes, and {config.model.name} gives one of shape "
                f"{answered.shape[1:]}; an autoencoder learns by trainer.objective=reconstruction"
            )


@dataclasses.dataclass(frozen=True)
class Reconstruction(Objective):
    """Rewards a model for giving back `batch["image"]`, by its log-likelihood in summed nats.

    The model may corrupt what it sees; the target is the clean input.

    Attributes:
        likelihood: what the model's output means. "bernoulli": logits of pixels in [0, 1], whose
            cross-entropy is a log-likelihood where they are 0 or 1 (set dataset.normalize=unit);
            "gaussian": means.
        sd: standard deviation of the Gaussian, in units of the input.
        metrics: names of the values reported per example; mse is the mean over its features.
        better: the metric that chooses checkpoints, and its direction.

    Raises:
        UserError: on another likelihood, an sd that is not positive, or a model whose output has
            not the shape of its input.
    """

    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    sd: float = 1.0
    metrics: ClassVar[tuple[str, ...]] = ("reward", "mse")
    better: ClassVar[tuple[str, Literal["min", "max"]]] = ("reward", "max")

    def __post_init__(self) -> None:
        if self.likelihood not in ("bernoulli", "gaussian"):
            raise UserError(
                f"the likelihood must be 'bernoulli' or 'gaussian', got {self.likelihood!r}"
            )
        if not self.sd > 0:
            raise UserError(f"the likelihood's sd must be positive, got {self.sd!r}")

    def __call__(
        self, model: Any, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        target = batch["image"]
        out = precise(model(target))
        if jnp.shape(out) != jnp.shape(target):
            raise UserError(
                f"reconstruction needs a model whose output has the shape of its input, "
                f"{jnp.shape(target)}, got {jnp.shape(out)}; an autoencoder's has"
            )
        if self.likelihood == "bernoulli":
            mean = nnx.sigmoid(out)
            nats = target * nnx.log_sigmoid(out) + (1 - target) * nnx.log_sigmoid(-out)
        else:
            mean = out
            nats = -0.5 * jnp.square((target - out) / self.sd) - math.log(
                self.sd * math.sqrt(2 * math.pi)
            )
        features = tuple(range(1, jnp.ndim(target)))
        rewards = jnp.sum(nats, features)
        return rewards, {"reward": rewards, "mse": jnp.mean(jnp.square(target - mean), features)}

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        """Raises UserError if examples don't come back, or are not what the likelihood is of."""
        if answered.shape[1:] != data.example_shape:
            raise UserError(
                "trainer.objective=reconstruction needs a model that gives back examples of shape "
                f"{data.example_shape}, an autoencoder, and {config.model.name} gives "
                f"{answered.shape[1:]}"
            )
        require_pixels(config, "trainer", self.likelihood)


def classification(*, reward: str = "log_likelihood") -> Classification:
    """Rewards a classifier for its answers, by one of `trainers.REWARDS`."""
    return Classification(reward_named(reward))


def reconstruction(*, likelihood: Literal["bernoulli", "gaussian"] = "bernoulli") -> Reconstruction:
    """Rewards an autoencoder for giving back its input; bernoulli needs dataset.normalize=unit."""
    return Reconstruction(likelihood)


def elbo(
    *,
    latent_samples: int = 1,
    beta: float = 1.0,
    free_bits: float = 0.0,
    kl_warmup: float = 0.0,
) -> Elbo:
    """Rewards a variational autoencoder for its evidence lower bound; the keys are `Elbo`'s."""
    return Elbo(latent_samples, beta, free_bits, kl_warmup)


def fast_learner(
    *,
    reward: str = "log_likelihood",
    fast_samples: int = 16,
    fast_learning_rate: float = 0.01,
) -> FastLearner:
    """Rewards features for how well a head does that learns on them by GRLU, for evolution."""
    require("trainer.fast_learning_rate", fast_learning_rate, 0)
    return FastLearner(reward_named(reward), samples=fast_samples, learning_rate=fast_learning_rate)


# Name → what makes an objective; its keywords, or its fields, are keys of the trainer's section.
# Add your own: `trainers.OBJECTIVES["mine"] = Mine`
OBJECTIVES: dict[str, Callable[..., Any]] = {
    "classification": classification,
    "completion_reward": CompletionSettings,
    "denoising": Denoising,
    "elbo": elbo,
    "fast_learner": fast_learner,
    "iwae": Iwae,
    "lm": LanguageModelling,
    "reconstruction": reconstruction,
}


def objective_named(name: str) -> Callable[..., Any]:
    """What makes the objective of that name, of the keys of its own.

    Raises:
        UserError: if there is none.
    """
    if str(name) not in OBJECTIVES:  # A config may hold anything.
        raise UserError(f"trainer.objective must be one of {', '.join(OBJECTIVES)}; got {name!r}")
    return OBJECTIVES[name]


def learns_from_text(name: str) -> bool:
    """Whether the objective of that name learns from text, and not from images."""
    return getattr(objective_named(name), "of_text", False)


def reward_named(name: str) -> Reward:
    """The reward of that name.

    Raises:
        UserError: if there is none.
    """
    if name not in REWARDS:
        raise UserError(f"trainer.reward must be one of {', '.join(REWARDS)}; got {name!r}")
    return REWARDS[name]

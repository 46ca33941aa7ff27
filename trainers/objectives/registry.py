"""Objectives for images, and the registries of rewards and objectives."""

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

import grlu
from grlu.errors import UserError
from grlu.kl import chosen
from grlu.noise.spread import undivided
from input_pipeline import Data
from models.layers import layer_norm, precise
from trainers.config.values import require
from trainers.objectives.bandit import Bandit
from trainers.objectives.base import Batch, Better, Objective, Values
from trainers.objectives.completion import CompletionSettings
from trainers.objectives.elbo import Elbo, Iwae, require_pixels
from trainers.objectives.language import Denoising, LanguageModelling

# (logits (B, classes), labels (B,)) -> rewards (B,)
Reward = Callable[[jax.Array, jax.Array], jax.Array]


def log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """log softmax(logits)[label], in nats."""
    return chosen(nnx.log_softmax(logits), labels)


def floored_log_likelihood(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """log(softmax(logits)[label] + 1e-10), in nats: the reward of the published algorithm."""
    return jnp.log(probability(logits, labels) + 1e-10)


def probability(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """softmax(logits)[label], in [0, 1]: the expected accuracy of a sampled answer."""
    return chosen(nnx.softmax(logits), labels)


# Add your own: `trainers.REWARDS["margin"] = lambda logits, labels: ...`
REWARDS: dict[str, Reward] = {
    "floored_log_likelihood": floored_log_likelihood,
    "log_likelihood": log_likelihood,
    "probability": probability,
}


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Rewards a classifier for its answer to `batch["image"]`, given `batch["label"]`.

    A model with several heads returns logits of shape (B, heads, classes): the reward is the sum
    over the heads, and the answer that of the last head.

    Attributes:
        reward: reward function of logits (B, classes) and labels (B,).
    """

    reward: Reward
    metrics: ClassVar[tuple[str, ...]] = ("reward", "accuracy")
    better: ClassVar[Better] = ("accuracy", "max")

    def __call__(self, model: Any, batch: Batch) -> tuple[jax.Array, Values]:
        logits = precise(model(batch["image"]))
        labels = batch["label"]
        if logits.ndim == 3:
            rewards = jnp.sum(jax.vmap(self.reward, (1, None), 1)(logits, labels), axis=1)
            logits = logits[:, -1]
        else:
            rewards = self.reward(logits, labels)
        correct = jnp.argmax(logits, axis=-1) == labels
        return rewards, {"reward": rewards, "accuracy": correct.astype(jnp.float32)}

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        if answered.shape[-1:] != (data.num_classes,):
            raise UserError(
                "trainer.objective=classification needs a model with a logit for each of the "
                f"{data.num_classes} classes; {config.model.name} returns {answered.shape[1:]}; "
                "for an autoencoder set trainer.objective=reconstruction"
            )


@dataclasses.dataclass(frozen=True)
class Reconstruction(Objective):
    """Rewards a model for reconstructing `batch["image"]`: its log-likelihood in nats.

    The model may corrupt its input; the target is the clean input. The metric mse is a mean over
    features.

    Attributes:
        likelihood: meaning of the model's output: "bernoulli", logits of pixels in [0, 1]
            (dataset.normalize=unit), or "gaussian", means.
        sd: standard deviation of the Gaussian, in units of the input.
    """

    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    sd: float = 1.0
    metrics: ClassVar[tuple[str, ...]] = ("reward", "mse")
    better: ClassVar[Better] = ("reward", "max")
    described: ClassVar[str] = "an autoencoder of {data}: 'grlu report {run}' shows its images"

    def __post_init__(self) -> None:
        if self.likelihood not in ("bernoulli", "gaussian"):
            raise UserError(
                f"the likelihood must be 'bernoulli' or 'gaussian', got {self.likelihood!r}"
            )
        if not self.sd > 0:
            raise UserError(f"the likelihood's sd must be positive, got {self.sd!r}")

    def __call__(self, model: Any, batch: Batch) -> tuple[jax.Array, Values]:
        target = batch["image"]
        out = precise(model(target))
        if jnp.shape(out) != jnp.shape(target):
            raise UserError(
                f"reconstruction needs a model, such as an autoencoder, whose output has the shape "
                f"of its input, {jnp.shape(target)}, got {jnp.shape(out)}"
            )
        if self.likelihood == "bernoulli":
            mean = nnx.sigmoid(out)
            nats = target * nnx.log_sigmoid(out) + (1 - target) * nnx.log_sigmoid(-out)
        else:
            mean, norm = out, math.log(self.sd * math.sqrt(2 * math.pi))
            nats = -0.5 * jnp.square((target - out) / self.sd) - norm
        features = tuple(range(1, jnp.ndim(target)))
        rewards = jnp.sum(nats, features)
        return rewards, {"reward": rewards, "mse": jnp.mean(jnp.square(target - mean), features)}

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        if answered.shape[1:] != data.example_shape:
            raise UserError(
                "trainer.objective=reconstruction needs an autoencoder, which returns examples of "
                f"shape {data.example_shape}; {config.model.name} returns {answered.shape[1:]}"
            )
        require_pixels(config, "trainer", self.likelihood)


@dataclasses.dataclass(frozen=True)
class FastLearner(Objective):
    """Rewards a model for features, `model.encode(x)`, on which a head learns fast.

    A linear head, initially zero, classifies the first half of the batch one example at a time, and
    learns from each by GRLU after its answer; then it classifies the second half. The sum of
    rewards over the batch therefore measures both speed and final accuracy. All models see the same
    noise. Since the rewards of a batch depend on each other, the rule must score full batches.

    Attributes:
        reward: reward function of logits and labels.
        classes: number of classes, set from the data (`on`).
        samples: pairs of perturbations per example, a power of two.
        learning_rate: rate of the head's plain SGD, on features normalised like an MLP's.
    """

    reward: Reward
    classes: int = 0
    samples: int = 16
    learning_rate: float = 0.01
    metrics: ClassVar[tuple[str, ...]] = ("reward", "accuracy")
    better: ClassVar[Better] = ("accuracy", "max")
    of_batches: ClassVar[bool] = True

    def on(self, data: Data, rule: grlu.Rule) -> "FastLearner":
        if rule.local:
            raise UserError(
                "trainer.objective=fast_learner rewards a batch as a whole and assigns no credit "
                "to single examples: use trainer.name=evolution or weight_perturbation"
            )
        return dataclasses.replace(self, classes=data.num_classes)

    def __call__(self, model: Any, batch: Batch) -> tuple[jax.Array, Values]:
        features, labels = layer_norm(model.encode(batch["image"])), batch["label"]
        support = len(labels) // 2
        rule = grlu.NodePerturbation(samples=self.samples, noise="orthogonal")
        keys = jax.random.split(jax.random.key(0), len(labels))

        def answer(head: Any, _: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
            logits = batch[0] @ head["kernel"] + head["bias"][None]
            return self.reward(logits, batch[1]), jnp.argmax(logits, -1) == batch[1]

        def learn(head: Any, example: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            x, label, key = example
            one = (x[None], label[None])
            with undivided():  # Devices shard the models, not a head's perturbations.
                rewards, correct, ascent = rule.gradient(answer, head, (), one, key)
            head = jax.tree.map(lambda w, d: w + self.learning_rate * d, head, ascent)
            return head, (rewards[0], correct[0])

        kernel = jnp.zeros((features.shape[-1], self.classes))
        head = {"kernel": kernel, "bias": jnp.zeros(self.classes)}
        examples = (features[:support], labels[:support], keys[:support])
        head, seen = jax.lax.scan(learn, head, examples)
        queried = answer(head, (), (features[support:], labels[support:]))
        rewards, correct = (jnp.concatenate(both) for both in zip(seen, queried, strict=True))
        return rewards, {"reward": rewards, "accuracy": correct.astype(jnp.float32)}


def classification(*, reward: str = "log_likelihood") -> Classification:
    """Rewards a classifier for its answers, by one of `trainers.REWARDS`."""
    return Classification(reward_named(reward))


def fast_learner(
    *, reward: str = "log_likelihood", fast_samples: int = 16, fast_learning_rate: float = 0.01
) -> FastLearner:
    """Rewards features for the success of a head that learns on them by GRLU; for evolution."""
    require("trainer.fast_learning_rate", fast_learning_rate, 0)
    return FastLearner(reward_named(reward), samples=fast_samples, learning_rate=fast_learning_rate)


# Name → class or function; its fields or keywords become keys of the `trainer` section.
# Add your own: `trainers.OBJECTIVES["mine"] = Mine`
OBJECTIVES: dict[str, Callable[..., Any]] = {
    "bandit": Bandit,
    "classification": classification,
    "completion_reward": CompletionSettings,
    "denoising": Denoising,
    "elbo": Elbo,
    "fast_learner": fast_learner,
    "iwae": Iwae,
    "lm": LanguageModelling,
    "reconstruction": Reconstruction,
}


def objective_named(name: str) -> Callable[..., Any]:
    """Return the class or function that makes the named objective, or raise UserError."""
    if str(name) not in OBJECTIVES:  # A config may hold any value.
        raise UserError(f"trainer.objective must be one of {', '.join(OBJECTIVES)}; got {name!r}")
    return OBJECTIVES[name]


def trait(name: str, attribute: str) -> Any:
    """Return a class attribute of the named objective, such as `of_text`."""
    factory = objective_named(name)
    if not inspect.isclass(factory):
        factory = typing.get_type_hints(factory).get("return", Objective)
    return getattr(factory, attribute, getattr(Objective, attribute))


def reward_named(name: str) -> Reward:
    """Return the named reward, or raise UserError."""
    if name not in REWARDS:
        raise UserError(f"trainer.reward must be one of {', '.join(REWARDS)}; got {name!r}")
    return REWARDS[name]

"""Reward for features on which a head learns fast, online."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

import grlu
from grlu.errors import UserError
from grlu.noise.spread import undivided
from input_pipeline import Data
from models.layers import layer_norm
from trainers.objectives.base import Batch, Better, Objective, Values


@dataclasses.dataclass(frozen=True)
class FastLearner(Objective):
    """Rewards a model for features, `model.encode(x)`, on which a head learns fast.

    A linear head, initially zero, answers the first half of the batch one by one, and learns from
    each example by GRLU after its answer; then it answers the second half. So the sum of rewards
    over the batch measures both speed and final accuracy. All models that are compared see the same
    noise. Since the rewards of a batch depend on each other, the rule must score whole batches.

    Attributes:
        reward: reward function of logits and labels.
        classes: number of classes, set from the data (`on`).
        samples: pairs of perturbations per example, a power of two.
        learning_rate: rate of the head's plain SGD, on features normalised like an MLP's.
    """

    reward: Callable[[jax.Array, jax.Array], jax.Array]
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

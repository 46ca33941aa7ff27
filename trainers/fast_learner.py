"""The reward of a fast learner: how well a head does that learns on a model's features, online."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

import grlu
from grlu.errors import UserError
from grlu.spread import undivided
from input_pipeline import Data
from models.layers import layer_norm
from trainers.objective import Objective


@dataclasses.dataclass(frozen=True)
class FastLearner(Objective):
    """Rewards a model for features, `model.encode(x)`, on which a head learns fast.

    The first half of the batch is the support: a linear head, zero at first, answers one example
    after the other, and after each learns from it by GRLU (node perturbation, from the reward
    alone). The second half is the query, which the head answers as it is then. The reward of a
    support example is that of its answer before it was learned from, so that the sum over the
    batch pays for speed and for the end. All that compare models see the same noise.

    The rewards of a batch hang together: a rule that scores whole batches, such as evolution, can
    maximise them; credit example by example cannot.

    Attributes:
        reward: of an answer.
        classes: number of outputs of the head; those of the data (`on`).
        samples: pairs of perturbations per example, a power of two.
        learning_rate: of the head, plain SGD on features that are normalised as an MLP's are.
        metrics: names of the values reported per example.
        better: the metric that chooses checkpoints, and its direction.
    """

    reward: Callable[[jax.Array, jax.Array], jax.Array]
    classes: int = 0
    samples: int = 16
    learning_rate: float = 0.01
    metrics: ClassVar[tuple[str, ...]] = ("reward", "accuracy")
    better: ClassVar[tuple[str, Literal["min", "max"]]] = ("accuracy", "max")
    of_batches: ClassVar[bool] = True

    def on(self, data: Data, rule: grlu.Rule) -> "FastLearner":
        """The objective on some data, under a rule.

        Raises:
            UserError: if the rule gives credit example by example.
        """
        if rule.local:
            raise UserError(
                "trainer.objective=fast_learner rewards a batch as a whole, so that no credit goes "
                "to single examples: use trainer.name=evolution or weight_perturbation"
            )
        return dataclasses.replace(self, classes=data.num_classes)

    def __call__(
        self, model: Any, batch: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
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
            with undivided():  # Several devices share out the models, not a head's perturbations.
                rewards, correct, ascent = rule.gradient(answer, head, (), one, key)
            head = jax.tree.map(lambda w, d: w + self.learning_rate * d, head, ascent)
            return head, (rewards[0], correct[0])

        head = {
            "kernel": jnp.zeros((features.shape[-1], self.classes)),
            "bias": jnp.zeros(self.classes),
        }
        examples = (features[:support], labels[:support], keys[:support])
        head, seen = jax.lax.scan(learn, head, examples)
        asked = answer(head, (), (features[support:], labels[support:]))
        rewards, correct = (jnp.concatenate(both) for both in zip(seen, asked, strict=True))
        return rewards, {"reward": rewards, "accuracy": correct.astype(jnp.float32)}

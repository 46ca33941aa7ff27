"""What an objective is: all that a run asks of what it rewards, with an answer if none is given.

Those that there are stand in `trainers/objectives.py`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
from ml_collections import ConfigDict

from grlu.errors import UserError
from grlu.rule import Rule
from input_pipeline import Data

Batch = Mapping[str, jax.Array]
Values = dict[str, jax.Array]


class Objective:
    """A reward per example, and values to report. A subclass says both by `__call__`.

    Attributes:
        metrics: names of the values that `__call__` gives, per example.
        better: the metric that chooses checkpoints, and its direction.
        of_text: class attribute: whether it learns from `batch["tokens"]`, and not from
            `batch["image"]`.
        of_batches: class attribute: whether an example's reward depends on the others of its batch,
            which then cannot be computed in parts.
    """

    metrics: ClassVar[Any]  # A tuple of names.
    better: ClassVar[tuple[str, Literal["min", "max"]]]
    of_text: ClassVar[bool] = False
    of_batches: ClassVar[bool] = False

    def __call__(self, model: Any, batch: Batch) -> tuple[jax.Array, Values]:
        """Rewards, shape (B,), of a model in training, and values for its log."""
        raise NotImplementedError

    @property
    def end_token(self) -> int | None:
        """The token with which a text that the model writes is at its end, or None."""
        return None

    def on(self, data: Data, rule: Rule) -> "Objective":
        """The objective on some data, under a rule."""
        return self

    def judged(self, judge: Any) -> "Objective":
        """The objective paid by a reward model's reward.

        Raises:
            UserError: if it is none of what a model writes.
        """
        raise UserError(
            "judge: a reward model pays what a model writes: use trainer.name=grpo, or "
            "trainer.objective=completion_reward"
        )

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        """Raises UserError if a model does not fit.

        Args:
            config: the run's.
            data: what is learned from.
            model: an abstract one, with shapes in the place of its weights.
            answered: shape and type of what it makes of one example.
        """

    def prepare(self, model: Any) -> None:
        """Gives a new model what the objective needs of it; a `trainers.state.Note` is kept."""

    def at(self, progress: jax.Array) -> "Objective":
        """The objective when this share of the run, from 0 to 1, is done."""
        return self

    def scales(self) -> Values:
        """What changes in the course of a run, for its log."""
        return {}

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Names of the values that `evaluate` gives."""
        return self.metrics

    def evaluate(self, model: Any, batch: Batch) -> Values:
        """Values per example of a model in evaluation."""
        return self(model, batch)[1]

    def examples(self, model: Any, key: jax.Array, batch: Batch) -> list[dict[str, Any]]:
        """What a person should see of a model's answers to a batch."""
        return []

    def reason(self, model: Any) -> str | None:
        """Why a value was not finite in the course of the run, if that is known."""
        return None

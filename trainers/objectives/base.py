"""Base class of all objectives; `trainers/objectives/registry.py` lists them."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
from ml_collections import ConfigDict

from grlu.rules.rule import Rule
from input_pipeline import Data
from trainers.loop.trainer import Arrays, Values

Batch = Arrays
Better = tuple[str, Literal["min", "max"]]


class Objective:
    """Objective: a reward per example, and values to report, both returned by `__call__`.

    Attributes:
        metrics: names of the values of `__call__`, per example.
        better: metric that chooses checkpoints, and its direction.
        constants: arrays that it reads besides the model, a pytree, or None.
        of_text: learns from `batch["tokens"]` instead of `batch["image"]`.
        of_batches: the reward of an example depends on the rest of its batch, so batches cannot be
            computed in parts.
        generative: trains a variational autoencoder by a bound of its likelihood.
        described: text on a run's model and its use, with fields `data` and `run`; images only.
    """

    metrics: ClassVar[Any]  # A tuple of names.
    better: ClassVar[Better]
    constants: ClassVar[Any] = None
    of_text: ClassVar[bool] = False
    of_batches: ClassVar[bool] = False
    generative: ClassVar[bool] = False
    described: ClassVar[str] = "a classifier of {data}: 'grlu evaluate {run}' reports its accuracy"

    def __call__(self, model: Any, batch: Batch) -> tuple[jax.Array, Values]:
        """Return rewards (B,) of a model in training, and values per example for the log."""
        raise NotImplementedError

    @property
    def end_token(self) -> int | None:
        """End-of-sequence token of the model's texts, or None."""
        return None

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Names of the values of `evaluate`."""
        return self.metrics

    def on(self, data: Data, rule: Rule) -> "Objective":
        """Return the objective for a data set and a rule."""
        return self

    def bind(self, constants: Any) -> "Objective":
        """Return the objective with other `constants` of the same structure."""
        return self

    def evidence(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Return shapes and dtypes, per batch, of values beyond `metrics` that `reason` needs."""
        return {}

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        """Raise UserError if an abstract model does not fit config and data.

        `answered` has the shape and dtype of the model's output for one example.
        """

    def prepare(self, model: Any) -> None:
        """Add what the objective needs to a new model."""

    def at(self, progress: jax.Array) -> "Objective":
        """Return the objective after a fraction, in [0, 1], of the run."""
        return self

    def scales(self) -> Values:
        """Return values that change over the run, for its log."""
        return {}

    def evaluate(self, model: Any, batch: Batch) -> Values:
        """Return values per example of a model in evaluation mode."""
        return self(model, batch)[1]

    def examples(self, model: Any, key: jax.Array, batch: Batch) -> list[dict[str, Any]]:
        """Return samples from the model, for the log."""
        return []

    def pictures(self, model: Any, x: jax.Array) -> dict[str, jax.Array]:
        """Return pictures of a model's outputs for images x (N, ...), each (rows, N, ...)."""
        return {}

    def reason(self, evidence: Mapping[str, Any]) -> str | None:
        """Explain the non-finite values of a step, if its `evidence` shows the reason."""
        return None

"""Base class of trainers: the pure functions that the loop calls."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from grlu.errors import UserError
from trainers.loop.state import TrainState

Arrays = Mapping[str, Any]
Values = dict[str, jax.Array]
Fold = Callable[[Any, jax.Array, Values], Any]
Check = tuple[bool, str]
"""A condition, and a sentence about it."""


class BaseTrainer(abc.ABC):
    """Trainer: pure functions of a run, and the names of their values.

    Attributes:
        settings: the config's `trainer` section; `settings.remedy` is advice against non-finite
            values.
        metrics: names of the values of `step`, per example or one per batch.
        evaluated: names of the values of `evaluate`, per example.
        better: metric that chooses checkpoints, and its direction.
        block: number of updates of one call of `steps`; 1 if `steps` is None.
        steps: `steps(state, batches, count, fold, start)` takes the first `count` updates of a
            block and calls `fold(carried, step, values)` after each; None to call `step` instead.
        tiny: True if the operations of a step take microseconds, as on single examples.
        looped: False to run each step as one program: XLA's loops on a CPU make the gradients of
            convolutions 10 times slower (measured).
        evidence: shapes and dtypes of values of `step` beyond `metrics`; the loop keeps those of
            the first non-finite step, for `reason`.
    """

    settings: Any
    metrics: tuple[str, ...]
    evaluated: tuple[str, ...]
    better: tuple[str, Literal["min", "max"]]
    block: int = 1
    steps: Callable[[Any, Arrays, jax.Array, Fold, Any], tuple[TrainState, Any]] | None = None
    tiny: bool = False
    looped: bool = True
    evidence: Mapping[str, jax.ShapeDtypeStruct] = {}

    @abc.abstractmethod
    def init(self, key: jax.Array) -> TrainState:
        """Return the state before the first step."""

    @abc.abstractmethod
    def step(self, state: Any, batch: Arrays) -> tuple[TrainState, Values]:
        """Take one update; the values are those before the update."""

    @abc.abstractmethod
    def evaluate(self, state: Any, batch: Arrays) -> Values:
        """Return deterministic values per example."""

    @abc.abstractmethod
    def model(self, state: Any) -> Any:
        """Return the model in evaluation mode."""

    @abc.abstractmethod
    def scales(self, step: jax.Array) -> Values:
        """Return the values of the schedules at a step."""

    @property
    def constants(self) -> Any:
        """Arrays that the functions read besides the state, a pytree, or None.

        Compiled programs take them as an argument, and checkpoints do not hold them.
        """
        return None

    def bind(self, constants: Any) -> Any:
        """Return this trainer with other `constants` of the same structure, such as tracers."""
        return self

    @property
    def end_token(self) -> int | None:
        """End-of-sequence token of the model's texts, or None."""
        return None

    def rewards(self, state: Any, batch: Arrays) -> tuple[jax.Array, jax.Array] | None:
        """Return the rewards of the network that a rule traces and of the model itself, or None."""
        return None

    def alignment(self, state: Any, batch: Arrays) -> jax.Array:
        """Return e·g, e·e and g·g, (3,), for a rule's estimate e and the exact gradient g."""
        raise UserError(
            f"run.alignment_every compares a rule's estimate with the exact gradient, and a "
            f"{type(self).__name__} has no such rule: set it to 0"
        )

    def encode(self, state: Any, batch: Arrays) -> jax.Array:
        """Return the model's features of a batch of images, (B, ...)."""
        raise UserError(f"a {type(self).__name__} has no features of images to learn on")

    def reason(self, evidence: Mapping[str, Any]) -> str:
        """Explain a non-finite value, or suggest a remedy.

        Args:
            evidence: values of the first non-finite step, as arrays; empty in evaluation.
        """
        return self.settings.remedy

    def diagnose(self, values: Mapping[str, float]) -> list[Check]:
        """Check the training metrics of some steps."""
        return []

    def tokens(self, values: Mapping[str, float]) -> float | None:
        """Return the number of tokens per example for a row of metrics; None without text."""
        return None

    def pictures(self, state: Any, x: jax.Array) -> dict[str, jax.Array]:
        """Return pictures of the model's outputs for images x (N, ...), each (rows, N, ...)."""
        return {}

    def examples(self, state: Any, batch: Arrays) -> list[dict[str, Any]]:
        """Return samples from the model, for the log."""
        return []

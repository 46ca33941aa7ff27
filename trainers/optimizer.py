"""Optimizers and schedules, and their settings."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from grlu.errors import UserError
from trainers.config.values import require

ScheduleName = Literal["constant", "cosine", "warmup_cosine"]
OptimizerName = Literal["sgd", "normalized", "momentum", "adam", "adamw"]

Schedule = Callable[[jax.Array], jax.Array]


def schedule(
    name: ScheduleName, start: float, end: float, steps: int, *, warmup: int, hold: int = 1
) -> Schedule:
    """Return a schedule: a function of the step that changes after every `hold` steps.

    "constant" stays at `start`; "cosine" falls from `start` to `end` over `steps`; "warmup_cosine"
    first rises from 0 over `warmup` steps.
    """
    if name == "constant":
        by_step = optax.constant_schedule(start)
    elif name == "cosine":
        by_step = optax.cosine_decay_schedule(start, steps, alpha=end / start if start else 0.0)
    else:
        if not 0 < warmup < steps:
            raise UserError(
                f"warmup must be between 0 and the run's {steps} steps, got {warmup} steps"
            )
        by_step = optax.warmup_cosine_decay_schedule(0.0, start, warmup, steps, end)
    return lambda step: jnp.asarray(by_step(step // hold * hold), jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Part of a config's `trainer` section.

    Attributes:
        epochs: passes over the training split; 0 keeps the initial model, as a control.
        batch_size: examples per step.
        optimizer: "sgd", "normalized" (step norm = rate), "momentum", "adam" or "adamw".
        learning_rate: highest rate.
        learning_rate_end: rate at the end of a cosine.
        schedule: schedule of the rate: "constant", "cosine" or "warmup_cosine".
        warmup: fraction of the run in which a "warmup_cosine" rises.
        momentum: momentum of "momentum".
        weight_decay: weight decay of "adamw".
        clip: largest global norm of the gradient, or None.
        remedy: advice against non-finite values.
    """

    epochs: int = 1
    batch_size: int = 32
    optimizer: OptimizerName = "adamw"
    learning_rate: float = 3e-4
    learning_rate_end: float = 0.0
    schedule: ScheduleName = "constant"
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float | None = 1.0

    remedy: ClassVar[str] = "a lower trainer.learning_rate or a trainer.clip may help"

    def __post_init__(self) -> None:
        require("trainer.epochs", self.epochs, 0)
        require("trainer.batch_size", self.batch_size, 1)
        require("trainer.learning_rate", self.learning_rate, 0)
        require("trainer.learning_rate_end", self.learning_rate_end, 0)
        require("trainer.warmup", self.warmup, 0, 1)
        require("trainer.momentum", self.momentum, 0, 1)
        require("trainer.weight_decay", self.weight_decay, 0)
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"trainer.clip must be positive or null, got {self.clip:g}")

    def rate(
        self, steps_per_epoch: int, highest: float | None = None, *, hold: int = 1
    ) -> Schedule:
        """Return the schedule of the learning rate, or one with another `highest` rate.

        It changes after every `hold` steps.
        """
        steps = max(1, self.epochs * steps_per_epoch)  # Schedules must not have length 0.
        return schedule(
            self.schedule,
            self.learning_rate if highest is None else highest,
            self.learning_rate_end,
            steps,
            warmup=round(self.warmup * steps),
            hold=hold,
        )

    def transformation(self, rate: Schedule) -> optax.GradientTransformation:
        """Return the optax optimizer with a schedule of the learning rate."""
        match self.optimizer:
            case "sgd":
                chosen = optax.sgd(rate)
            case "normalized":
                # The norm of every step is the rate, so large credit does not outweigh small.
                chosen = optax.chain(optax.normalize_by_update_norm(eps=1e-12), optax.sgd(rate))
            case "momentum":
                chosen = optax.sgd(rate, momentum=self.momentum)
            case "adam":
                chosen = optax.adam(rate)
            case "adamw":
                chosen = optax.adamw(rate, weight_decay=self.weight_decay)
        if self.clip is None:
            return chosen
        return optax.chain(optax.clip_by_global_norm(self.clip), chosen)

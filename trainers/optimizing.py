"""The keys of every trainer that steps by an optimizer: how long, how much at once, how fast."""

import dataclasses
from typing import ClassVar

import optax

from grlu.errors import UserError
from trainers.schedules import OptimizerName, Schedule, ScheduleName, optimizer, require, schedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Part of a config's `trainer` section.

    Attributes:
        epochs: passes over the training split; 0 leaves the model as it was drawn, for a control.
        batch_size: examples per step.
        optimizer: "sgd", "normalized" (every step as long as the rate), "momentum", "adam" or
            "adamw".
        learning_rate: highest rate.
        learning_rate_end: rate at the end of a cosine.
        schedule: of the rate: "constant", "cosine" or "warmup_cosine".
        warmup: share of the run in which a "warmup_cosine" rises.
        momentum: of "momentum".
        weight_decay: of "adamw".
        clip: largest global norm of the gradient, or None.
        remedy: what may help where values are not finite.
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
        """The learning rate by step, or one of the same kind from another `highest` on.

        It changes after every `hold` steps.
        """
        steps = max(1, self.epochs * steps_per_epoch)  # A schedule has no length of 0.
        return schedule(
            self.schedule,
            self.learning_rate if highest is None else highest,
            self.learning_rate_end,
            steps,
            warmup=round(self.warmup * steps),
            hold=hold,
        )

    def transformation(self, rate: Schedule) -> optax.GradientTransformation:
        """The optimizer, at a rate."""
        return optimizer(
            self.optimizer,
            rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            clip=self.clip,
        )

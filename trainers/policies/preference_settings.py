"""Settings of the trainers that learn from preferences: a reward model, and DPO."""

import dataclasses
from typing import ClassVar

from trainers.completions.rollout import SamplingSettings
from trainers.completions.scoring import rewards_from
from trainers.config.values import require
from trainers.optimizer import OptimizerSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceSettings(SamplingSettings, OptimizerSettings):
    """The `trainer` section of a model that learns from preferences.

    Recorded preferences ignore the keys that sample pairs: all but `beta`.

    Attributes:
        pairs: preference pairs sampled per prompt, in a step and in evaluation.
        utility: rewards (`trainers.COMPLETION_REWARDS`, ...) whose sum decides the preference.
        utility_weights: weight of each; by default 1.
        doubt: temperature of the preference: a completion whose utility is higher by d is preferred
            with probability sigmoid(d / doubt), and always with 0. Evaluation has no doubt.
        beta: strength of DPO's implied KL penalty, in units of the implied reward per nat.
    """

    pairs: int = 1
    utility: tuple[str, ...] = ("preference_score",)
    utility_weights: tuple[float, ...] | None = None
    doubt: float = 0.0
    beta: float = 0.1

    scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        OptimizerSettings.__post_init__(self)
        super().__post_init__()
        require("trainer.pairs", self.pairs, 1)
        require("trainer.doubt", self.doubt, 0)
        require("trainer.beta", self.beta, 0)
        rewards_from(self.utility, self.utility_weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModel(PreferenceSettings):
    """Reward model: scores of completions that predict preferences."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO(PreferenceSettings):
    """Direct preference optimisation: a policy learns from preferences."""

    learning_rate: float = 1e-4
    scores: ClassVar[bool] = False

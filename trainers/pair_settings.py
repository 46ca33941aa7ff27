"""The keys of a trainer that learns from preferences, and the two names under which it does."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

from trainers.completing import PromptSettings
from trainers.completion_rewards import rewards_of
from trainers.optimizing import OptimizerSettings
from trainers.schedules import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSettings(PromptSettings, OptimizerSettings):
    """The `trainer` section of a model that learns from preferences.

    Of recorded pairs all keys that say how pairs come about, down to `doubt`, say nothing.

    Attributes:
        pairs: drawn of each prompt, in a step and in evaluation.
        utility: rewards (`trainers.COMPLETION_REWARDS`, ...) by whose sum the judge prefers.
        utility_weights: of each; by default 1.
        doubt: the judge prefers the one with more utility, by d, with the probability
            sigmoid(d / doubt); with 0 always.
        beta: of DPO: what a nat of divergence costs, in units of the implied reward.
    """

    pairs: int = 1
    utility: tuple[str, ...] = ("taste",)
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
        rewards_of(self.utility, self.utility_weights)

    def build(self, make_model: Callable[[Any], Any], steps_per_epoch: int, data: Any) -> Any:
        """The trainer of a model, for data of so many steps an epoch."""
        from trainers.pairs import PairTrainer

        return PairTrainer(self, make_model, steps_per_epoch, data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModel(PairSettings):
    """Reward model: scores completions so as to foretell a judge's preferences."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO(PairSettings):
    """Direct preference optimisation: a policy learns from a judge's preferences."""

    learning_rate: float = 1e-4
    scores: ClassVar[bool] = False

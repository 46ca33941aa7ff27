"""The keys of a policy's trainer, and the three names under which its defaults differ."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from grlu.advantages import ADVANTAGES
from grlu.errors import UserError
from grlu.kl import KLName, Place, require_sound
from grlu.policy_losses import Aggregation, Level
from trainers.completing import PaidSettings
from trainers.completion_rewards import Reward
from trainers.optimizing import OptimizerSettings
from trainers.schedules import require

AdvantageName = Literal["none", "mean", "leave_one_out", "group_mean", "group_mean_std", "gae"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySettings(PaidSettings, OptimizerSettings):
    """The `trainer` section of a language model that learns from reward.

    A step draws `samples` completions of each of `batch_size` prompts, and makes `updates` passes
    over them. What is not drawn from data, dropout included, is off: the policy that is trained is
    the one that was sampled.

    Attributes:
        samples: K, completions of each prompt.
        partial_logprob: weight of log p(target's token | what the policy wrote before it), per
            token, which is maximised beside the reward.
        advantage: "none", "mean", "leave_one_out", "group_mean", "group_mean_std", or "gae", which
            has a critic.
        whiten: whether advantages are shifted and scaled to mean 0 and deviation 1.
        loss: "reinforce", or "clip", that of PPO.
        ratio: "token", or "sequence" (GSPO).
        clip_low: how far below 1 the ratio counts.
        clip_high: how far above.
        aggregation: of tokens: "token", "sequence" or "constant".
        updates: passes over what was drawn.
        minibatches: optimizer steps a pass.
        micro_batches: parts in which a minibatch's gradient is computed, to save memory.
        kl: estimator of the divergence from the reference: "exact", "k1", "k2" or "k3"; what each
            is good for is said in `grlu/kl.py`.
        kl_in: "loss" (exact, k2, k3), whose gradient is that at the states visited, or "reward"
            (exact, k1), which also tells how a token leads to them.
        beta_kl: its weight.
        kl_warmup_tokens: drawn tokens in which that weight rises from 0.
        reference: "start" (the weights this run begins with), "random" (others, drawn anew),
            "bigram" (counted on the training split), the folder of a run, or "none".
        entropy: weight of the entropy of the policy, in nats a token.
        gae_decay: lambda of "gae".
        critic: of "gae": "apart", a model of its own, or "shared", the value head of the policy.
        value_weight: of the critic's loss, half of its squared error.
        value_clip: how far a value may move from the old one and count, or None.
        value_learning_rate: of a critic apart.
    """

    samples: int = 8
    partial_logprob: float = 0.0
    advantage: AdvantageName = "group_mean_std"
    whiten: bool = False
    loss: Literal["reinforce", "clip"] = "clip"
    ratio: Level = "token"
    clip_low: float = 0.2
    clip_high: float = 0.2
    aggregation: Aggregation = "token"
    updates: int = 1
    minibatches: int = 1
    micro_batches: int = 1
    kl: KLName = "exact"
    kl_in: Place = "loss"
    beta_kl: float = 0.0
    kl_warmup_tokens: int = 0
    reference: str = "start"
    entropy: float = 0.0
    gae_decay: float = 0.95
    critic: Literal["apart", "shared"] = "apart"
    value_weight: float = 1.0
    value_clip: float | None = 0.2
    value_learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        OptimizerSettings.__post_init__(self)
        super().__post_init__()
        for name in ("samples", "updates", "minibatches", "micro_batches"):
            require(f"trainer.{name}", getattr(self, name), 1)
        if self.value_clip is not None and not self.value_clip > 0:
            raise UserError(f"trainer.value_clip must be positive, got {self.value_clip:g}")
        for name in ("beta_kl", "kl_warmup_tokens", "clip_low", "clip_high", "value_weight"):
            require(f"trainer.{name}", getattr(self, name), 0)
        require("trainer.gae_decay", self.gae_decay, 0, 1)
        require_sound(self.kl, self.kl_in)
        if self.advantage in ("leave_one_out", "group_mean", "group_mean_std"):
            if self.samples < 2:
                raise UserError(
                    f"trainer.advantage={self.advantage} compares the samples of a prompt: "
                    f"trainer.samples must be at least 2, got {self.samples}"
                )
        elif self.advantage not in (*ADVANTAGES, "gae"):
            raise UserError(f"there is no trainer.advantage {self.advantage!r}")
        drawn, parts = self.batch_size * self.samples, self.minibatches * self.micro_batches
        if drawn % parts:
            raise UserError(
                f"trainer.minibatches × trainer.micro_batches, {parts}, must divide the "
                f"{drawn} completions of a step (batch_size × samples)"
            )
        if self.reference == "none" and self.beta_kl:
            raise UserError("trainer.beta_kl needs a trainer.reference: start, random, bigram, RUN")
        if self.loss == "reinforce" and self.updates * self.minibatches > 1:
            raise UserError(
                "trainer.loss=reinforce is right for samples of this very policy: with several "
                "updates a rollout use trainer.loss=clip"
            )

    def build(
        self,
        make_model: Callable[[Any], Any],
        steps_per_epoch: int,
        data: Any,
        judge: Reward | None = None,
        reference: Any = None,
    ) -> Any:
        """Return the trainer of a model.

        Args:
            make_model: from PRNG streams to a model.
            steps_per_epoch: number of steps per epoch.
            data: the data set.
            judge: reward of a reward model, as "judge" in `rewards`.
            reference: the reference policy, where `reference` is the folder of a run.
        """
        from trainers.policy import PolicyTrainer

        return PolicyTrainer(self, make_model, steps_per_epoch, data, judge, reference)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reinforce(PolicySettings):
    """Policy gradient with a baseline from the prompt's other samples."""

    advantage: AdvantageName = "leave_one_out"
    loss: Literal["reinforce", "clip"] = "reinforce"
    aggregation: Aggregation = "constant"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPO(PolicySettings):
    """Group-relative policy optimisation: samples of a prompt are compared with each other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPO(PolicySettings):
    """Proximal policy optimisation: several clipped updates a rollout, and a critic."""

    samples: int = 1
    advantage: AdvantageName = "gae"
    whiten: bool = True
    updates: int = 4
    minibatches: int = 4

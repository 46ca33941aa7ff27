"""Settings of the trainers of policies (REINFORCE, GRPO, PPO) and on preferences."""

import dataclasses
from typing import ClassVar, Literal

from grlu.errors import UserError
from grlu.kl import KLName, Place, require_sound
from grlu.policy_losses import Aggregation, Level
from trainers.completions.rollout import RewardSettings, SamplingSettings
from trainers.completions.scoring import rewards_from
from trainers.config.values import require
from trainers.optimizer import OptimizerSettings

AdvantageName = Literal["none", "mean", "leave_one_out", "group_mean", "group_mean_std", "gae"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySettings(RewardSettings, OptimizerSettings):
    """The `trainer` section of a language model that learns from reward.

    A step samples `samples` completions of each of `batch_size` prompts and takes `updates` passes
    over them. Dropout is off, so that the trained policy is the one that was sampled.

    The reference policy costs a second forward pass per update and, if it is a model, a second set
    of weights in each checkpoint. With `beta_kl` 0, a named reference still logs `kl`.

    Attributes:
        samples: K, completions of each prompt.
        partial_logprob: weight of a term, maximised in addition to the reward: the per-token
            log-probability of the target's token after the policy's own preceding tokens.
        advantage: "none", "mean", "leave_one_out", "group_mean", "group_mean_std", or "gae" with a
            critic.
        whiten: shift and scale advantages to mean 0 and standard deviation 1.
        loss: "reinforce", or "clip", the clipped loss of PPO.
        ratio: importance ratio per "token", or per "sequence" (GSPO).
        clip_low: distance below 1 at which the ratio is clipped.
        clip_high: distance above 1 at which the ratio is clipped.
        aggregation: weighting of tokens in the loss: "token", "sequence" or "constant".
        updates: passes over a rollout.
        minibatches: optimizer steps per pass.
        micro_batches: parts in which to compute a minibatch's gradient, to save memory.
        kl: estimator of the KL divergence from the reference: "exact", "k1", "k2" or "k3"
            (`grlu/kl.py` compares them).
        kl_in: "loss" (exact, k2, k3), with the gradient at the visited states, or "reward" (exact,
            k1), which also credits tokens for leading to these states.
        beta_kl: weight of the KL penalty.
        kl_warmup_tokens: number of sampled tokens over which `beta_kl` rises from 0.
        reference: "start" (the weights at the start of the run), "random" (new weights), "bigram"
            (counts on the training split), the folder of a run, or "none"; by default "start" if
            `beta_kl` is not 0, else "none".
        entropy: weight of the policy's entropy, in nats per token.
        gae_decay: lambda of "gae".
        critic: critic of "gae": "apart", a separate model, or "shared", the policy's value head.
        value_weight: weight of the critic's loss, half of its squared error.
        value_clip: distance from the old value at which a new one is clipped, or None.
        value_learning_rate: learning rate of a separate critic.
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
    reference: str | None = None
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
        compares = self.advantage in ("leave_one_out", "group_mean", "group_mean_std")
        if compares and self.samples < 2:
            raise UserError(
                f"trainer.advantage={self.advantage} compares the samples of a prompt: "
                f"trainer.samples must be at least 2, got {self.samples}"
            )
        completions, parts = self.batch_size * self.samples, self.minibatches * self.micro_batches
        if completions % parts:
            raise UserError(
                f"trainer.minibatches × trainer.micro_batches, {parts}, must divide the "
                f"{completions} completions of a step (batch_size × samples)"
            )
        if self.reference == "none" and self.beta_kl:
            raise UserError("trainer.beta_kl needs a trainer.reference: start, random, bigram, RUN")
        if self.loss == "reinforce" and self.updates * self.minibatches > 1:
            raise UserError(
                "trainer.loss=reinforce needs samples of the current policy: with several updates "
                "per rollout use trainer.loss=clip"
            )

    def passes(self, hidden: int | None) -> tuple[int, str]:
        samples, updates = self.samples, self.updates
        words = f"K (1 + U), K = {samples} completions per prompt, learned from U = {updates} times"
        return samples * (1 + updates), words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reinforce(PolicySettings):
    """Policy gradient whose baseline is the mean reward of the prompt's other samples."""

    advantage: AdvantageName = "leave_one_out"
    loss: Literal["reinforce", "clip"] = "reinforce"
    aggregation: Aggregation = "constant"


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPO(PolicySettings):
    """Group-relative policy optimisation: advantages compare the samples of a prompt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPO(PolicySettings):
    """Proximal policy optimisation: several clipped updates per rollout, and a critic."""

    samples: int = 1
    advantage: AdvantageName = "gae"
    whiten: bool = True
    updates: int = 4
    minibatches: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceSettings(SamplingSettings, OptimizerSettings):
    """The `trainer` section of a model that learns from preferences.

    With recorded preferences only `beta` has an effect: the other keys control sampling.

    Attributes:
        pairs: preference pairs sampled per prompt, in a step and in evaluation.
        utility: rewards (`trainers.COMPLETION_REWARDS`, ...) whose sum decides the preference.
        utility_weights: weight of each of these rewards; by default 1.
        doubt: temperature of the preference: a completion whose utility is higher by d is preferred
            with probability sigmoid(d / doubt), or always if it is 0. Evaluation uses 0.
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

    def passes(self, hidden: int | None) -> tuple[int, str]:
        return 4 * self.pairs, f"4 P, P = {self.pairs} pairs, sampled and learned from"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModel(PreferenceSettings):
    """Reward model: scores of completions that predict preferences."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO(PreferenceSettings):
    """Direct preference optimisation: a policy learns from preferences."""

    learning_rate: float = 1e-4
    scores: ClassVar[bool] = False

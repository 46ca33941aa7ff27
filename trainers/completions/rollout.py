"""Rollouts: sample completions of a data set's prompts and score them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grlu.errors import UserError
from input_pipeline.text.prompts import Prompts
from trainers.completions.rewards import Judge
from trainers.completions.sampling import Completions, sample
from trainers.completions.scoring import Rewards, Scores, rewards_from, short_name
from trainers.config.values import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """Keys of a trainer that samples completions.

    Attributes:
        prompt: tokens of a prompt; by default the data set's, 1 for plain text.
        horizon: maximum number of tokens of a completion; by default the rest of an example, or the
            part that a reward model can see.
        end: text of the end-of-sequence token, or None.
        temperature: sampling temperature in training.
    """

    prompt: int | None = None
    horizon: int | None = None
    end: str | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require("trainer.prompt", self.prompt, 1)
        require("trainer.horizon", self.horizon, 1)
        if not self.temperature > 0:
            raise UserError(f"trainer.temperature must be positive, got {self.temperature:g}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardSettings(SamplingSettings):
    """Keys of a trainer that rewards completions.

    Attributes:
        rewards: names of `trainers.COMPLETION_REWARDS`, `token:NUMBER` or `FILE.py:FUNCTION`;
            "judge" is the reward model that the config's `judge` names.
        reward_weights: weight of each reward; by default 1.
        reward_mode: reward of a wrong answer where a right one gets 1: "+1" gives 0, "±1" gives -1.
        discount: discount factor of per-token rewards; with 0 each token gets its own reward.
        eval_samples: k of pass@k, the number of completions per prompt in evaluation.
        eval_temperature: sampling temperature in evaluation.
    """

    rewards: tuple[str, ...] = ("exact",)
    reward_weights: tuple[float, ...] | None = None
    reward_mode: Literal["+1", "±1"] = "+1"
    discount: float = 1.0
    eval_samples: int = 4
    eval_temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("trainer.discount", self.discount, 0, 1)
        require("trainer.eval_samples", self.eval_samples, 1)
        if not self.eval_temperature > 0:
            raise UserError(
                f"trainer.eval_temperature must be positive, got {self.eval_temperature:g}"
            )
        rewards_from(self.rewards, self.reward_weights)


class Sampled(NamedTuple):
    """N = B x K scored completions; the K of each prompt are adjacent.

    Attributes:
        columns: `prompt` (N, P), `target` (N, T) and the data's other columns.
        completions: tokens, log-probabilities and lengths.
        sequences: prompts and completions, (N, P + T).
        mask: 1 at the tokens of the completions, (N, T), float32.
        scores: rewards.
        rewards: total reward, and that of each function if there are several, (N,), by metric.
        evidence: what `Rollout.explain` needs, (B, K, ...).
    """

    columns: dict[str, jax.Array]
    completions: Completions
    sequences: jax.Array
    mask: jax.Array
    scores: Scores
    rewards: dict[str, jax.Array]
    evidence: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Rollout:
    """Samples completions of prompts and scores them.

    Attributes:
        prompts: view of the data as prompts and targets.
        rewards: the rewards.
        wrong: reward of a wrong answer.
        temperature: sampling temperature in training.
        judge: the reward model behind the reward "judge", or None.
    """

    prompts: Prompts
    rewards: Rewards
    wrong: float
    temperature: float = 1.0
    judge: Judge | None = None

    @classmethod
    def from_settings(
        cls, settings: RewardSettings, data: Any, block: int | None = None, judge: Any = None
    ) -> "Rollout":
        """Return the rollout that a trainer's settings describe.

        `block` is the number of tokens that a reward model sees.

        Raises:
            UserError: if the data are not text, or a reward is for a token outside the vocabulary.
        """
        options = settings.prompt, settings.horizon, settings.end
        prompts = Prompts.from_data(data, *options, block=block)
        for name in settings.rewards:
            if name.startswith("token:") and int(name[6:]) >= prompts.vocabulary:
                raise UserError(
                    f"the reward {name!r} is for a token outside the vocabulary: {data.name} has "
                    f"the tokens 0 to {prompts.vocabulary - 1}"
                )
        rewards = rewards_from(settings.rewards, settings.reward_weights)
        wrong = -1.0 if settings.reward_mode == "±1" else 0.0
        return cls(prompts, rewards, wrong, settings.temperature, judge)

    def bind(self, judge: Judge) -> "Rollout":
        """Return this rollout with another reward model."""
        return dataclasses.replace(self, judge=judge)

    def sample(
        self, model: Any, prompts: jax.Array, key: jax.Array, samples: int = 1, **options: Any
    ) -> Completions:
        """Sample `samples` completions of each prompt (B, P); `options` are those of `sample`."""
        options = {"temperature": self.temperature, **options, "steps": self.prompts.horizon}
        end_token = self.prompts.end_token
        return sample(model, prompts, key=key, samples=samples, end_token=end_token, **options)

    def run(
        self, model: Any, batch: Any, key: jax.Array, samples: int = 1, **options: Any
    ) -> Sampled:
        """Sample and score `samples` completions of each prompt; `options` are `sample`'s."""
        columns = self.prompts.columns(batch)
        found = self.sample(model, columns["prompt"], key, samples, **options)
        if samples > 1:
            columns = {name: jnp.repeat(a, samples, axis=0) for name, a in columns.items()}
        mask = found.mask.astype(jnp.float32)
        given: dict[str, Any] = {**columns, "mask": mask, "wrong": self.wrong, "judge": self.judge}
        scores = self.rewards(given.pop("prompt"), found.tokens, **given)
        # With a single function, the total is its reward.
        named = dict(zip(self.metrics, (scores.total, *scores.by_function), strict=False))
        sequences = jnp.concatenate([columns["prompt"], found.tokens], axis=1)
        evidence = self.evidence(sequences, scores, samples)
        return Sampled(columns, found, sequences, mask, scores, named, evidence)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the rewards' metrics: the total, and each function's if there are several."""
        names = [short_name(name) for name in self.rewards.functions]
        return ("reward", *(f"reward_{name}" for name in names if len(names) > 1))

    def evidence(self, sequences: jax.Array, scores: Scores, samples: int) -> dict[str, jax.Array]:
        """Return what `explain` needs of a step: tokens (B, K, P + T), and rewards (B, K, ...)."""
        found = {"sequences": sequences, "scores": jnp.stack(scores.by_function, axis=1)}
        return {name: a.reshape(-1, samples, a.shape[-1]) for name, a in found.items()}

    def evidence_shapes(self, batch_size: int, samples: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return shapes and dtypes of `evidence` for `batch_size` prompts."""
        length = self.prompts.length + self.prompts.horizon
        sizes = {"sequences": (length, jnp.int32), "scores": (len(self.rewards.weights), "float32")}
        leading = batch_size, samples
        return {n: jax.ShapeDtypeStruct((*leading, s), d) for n, (s, d) in sizes.items()}

    def explain(self, evidence: Mapping[str, Any]) -> str | None:
        """Name the reward that was not finite, with a prompt and completion; None if all were.

        Without `evidence`, report only exceptions of rewards in Python.
        """
        raised = self.rewards.raised
        bad = np.argwhere(~np.isfinite(evidence["scores"])).tolist() if evidence else []
        if not bad:
            return "; ".join(f"the reward {n!r} raised {e}" for n, e in raised.items()) or None
        row, sample, number = min(bad, key=lambda index: index[::-1])
        name, length = list(self.rewards.functions)[number], self.prompts.length
        tokens = np.asarray(evidence["sequences"])[row, sample].tolist()
        prompt, completion = self.prompts.text(tokens[:length]), self.prompts.text(tokens[length:])
        what = f"raised {raised[name]}" if name in raised else "gave a value that is not finite"
        return f"the reward {name!r} {what} for the completion {completion!r} of {prompt!r}"

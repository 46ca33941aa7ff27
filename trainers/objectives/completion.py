"""Reward for the completions of a language model, under any learning rule.

A rule that perturbs the weights (evolution, weight perturbation) needs only the reward of the
completions that the perturbed weights sample, all with the same random numbers.

Every other rule needs the slope of the reward, or its response to noise on a unit, and a sampled
token has neither. For these rules the unperturbed weights sample the completions, and the reward is

    R + Σ A (log π(token) - stop(log π(token)))

Its value is R and its gradient is REINFORCE's. Noise on the units of one teacher-forced pass
changes it by the advantage A times the change of the log-probability, so node perturbation credits
each unit for its effect on the probability of better completions.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from grlu.advantages import leave_one_out, no_baseline, returns
from grlu.errors import UserError
from grlu.rules.rule import Rule
from input_pipeline import Data
from trainers.completions import evaluation
from trainers.completions.rewards import Judge
from trainers.completions.rollout import RewardSettings, Rollout
from trainers.completions.sampling import log_probs
from trainers.config.values import require
from trainers.objectives.base import Better, Objective, Values
from trainers.objectives.language import require_language_model


@dataclasses.dataclass(frozen=True)
class CompletionReward(Objective):
    """Mean reward of a model's completions of each prompt.

    Attributes:
        rollout: samples and scores completions.
        settings: number of completions, and the sampling options.
        by_weights: True if the rule perturbs the weights themselves.
        unrolled: unroll the sampler's loop, for a rule that adds noise to the product of a kernel
            and its input instead of to the kernel.
    """

    rollout: Rollout
    settings: "CompletionSettings"
    by_weights: bool
    unrolled: bool
    better: ClassVar[Better] = ("reward", "max")

    @property
    def metrics(self) -> tuple[str, ...]:
        exact = ("exact",) if self.rollout.rewards.use_target else ()
        return (*self.rollout.metrics, *exact, "length")

    @property
    def end_token(self) -> int | None:
        return self.rollout.prompts.end_token

    @property
    def evaluated(self) -> tuple[str, ...]:
        return evaluation.metrics(self.rollout)

    @property
    def constants(self) -> Judge | None:
        """The reward model, if the reward "judge" has one."""
        return self.rollout.judge

    def bind(self, constants: Judge) -> "CompletionReward":
        return dataclasses.replace(self, rollout=self.rollout.bind(constants))

    def evidence(self, batch_size: int) -> Mapping[str, jax.ShapeDtypeStruct]:
        return self.rollout.evidence_shapes(batch_size, self.settings.completions)

    def __call__(self, model: Any, batch: Any) -> tuple[jax.Array, Values]:
        settings, rollout = self.settings, self.rollout
        columns, key = rollout.prompts.columns(batch), model.draws()
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
        if not self.by_weights:
            params = jax.lax.stop_gradient(params)
        options = {"greedy": settings.greedy, "unrolled": self.unrolled}

        # The samples get a separate axis, because the rule uses the axis of the prompts.
        def one(key: jax.Array) -> Any:
            policy = nnx.merge(graphdef, params, rest, copy=True)
            found = rollout.run(policy, batch, key, **options)
            return found.completions, found.mask, found.scores, found.rewards, found.evidence

        keys = jax.random.split(key, settings.completions)
        found, mask, scores, measured, evidence = jax.vmap(one)(keys)
        if rollout.rewards.use_target:
            right = found.tokens == columns["target"][None]
            measured["exact"] = right.all(2).astype(jnp.float32)
        measured["length"] = found.lengths
        values = {name: value.mean(0, dtype=jnp.float32) for name, value in measured.items()}
        rewards = values["reward"]
        values |= {name: jnp.moveaxis(a[:, :, 0], 0, 1) for name, a in evidence.items()}
        if not self.by_weights:
            later = jax.vmap(lambda each: returns(each, settings.discount))(scores.per_token)
            returned = scores.per_completion[..., None] + later
            prompts = columns["prompt"]
            rewards = rewards + self._response(model, prompts, found.tokens, mask, returned)
        return rewards, values

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        require_language_model(config, data, answered, causal=True)

    def prepare(self, model: Any) -> None:
        """Add the PRNG stream of the samples, which a rule reseeds."""
        model.draws = nnx.Rngs(0).default

    def evaluate(self, model: Any, batch: Any) -> Values:
        return evaluation.evaluate(self.rollout, self.settings, model, batch)[0]

    def examples(self, model: Any, key: jax.Array, batch: Any) -> list[dict[str, Any]]:
        temperature = self.settings.eval_temperature
        return evaluation.examples(self.rollout, temperature, model, key, batch)

    def reason(self, evidence: Mapping[str, Any]) -> str | None:
        return self.rollout.explain(evidence)

    def _response(
        self, model: Any, prompts: jax.Array, tokens: jax.Array, mask: Any, returned: jax.Array
    ) -> jax.Array:
        """Return zeros, (B,), that respond to noise as log-probabilities times advantages do.

        Prompts are (B, P); `tokens`, `mask` and `returned`, the discounted return from each token
        on, are those of K completions of each, (K, B, T).
        """
        baseline = leave_one_out if len(tokens) > 1 else no_baseline
        advantages = jnp.moveaxis(baseline(jnp.moveaxis(returned, 0, 1)), 1, 0) * mask
        graphdef, state = nnx.split(model)

        def log_policy(tokens: jax.Array) -> jax.Array:
            policy = nnx.merge(graphdef, state, copy=True)
            policy.eval()
            sequences = jnp.concatenate([prompts, tokens], axis=1)[:, :-1]
            logits = policy(sequences, start=prompts.shape[1] - 1)
            return log_probs(logits, tokens, self.settings.temperature)

        found = jax.vmap(log_policy)(tokens)
        return ((found - jax.lax.stop_gradient(found)) * advantages).sum(2).mean(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionSettings(RewardSettings):
    """Reward a language model for its completions of prompts.

    Attributes:
        completions: number of completions per prompt, whose rewards are averaged.
        greedy: take the most likely tokens instead of sampling.
    """

    completions: int = 1
    greedy: bool = False
    of_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require("trainer.completions", self.completions, 1)

    def on(self, data: Data, rule: Rule) -> CompletionReward:
        """Return the objective for a data set; `greedy` needs a rule that perturbs the weights."""
        if self.greedy and not rule.of_weights:
            raise UserError(
                "trainer.greedy: the likeliest tokens respond to noise on weights alone: use "
                "trainer.name=evolution or weight_perturbation, or sample (trainer.greedy=false)"
            )
        unrolled = getattr(rule, "rank", None) is not None
        rollout = Rollout.from_settings(self, data)
        return CompletionReward(rollout, self, rule.of_weights, unrolled)

"""A language model rewarded for what it writes, by any rule.

A rule that moves the weights themselves (evolution, weight perturbation) needs the reward alone:
the completions are those of the moved weights, drawn with the same random numbers for all of them,
and nothing must be differentiable.

Every other rule needs the slope of the reward, or its response to noise on a unit, and a drawn
token has none. It gets that of the policy gradient: what was drawn by the weights as they are is
held, and the reward is

    R + Σ A (log π(token) - stop(log π(token)))

whose value is R, whose gradient is REINFORCE's, and which under noise on the units of one
teacher-forced pass moves by the advantage A times what the noise does to the log-probability. So
node perturbation gives credit for what each unit does to the probability of better completions.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from grlu.advantages import leave_one_out, no_baseline, returns
from grlu.errors import UserError
from grlu.rule import Rule
from input_pipeline import Data
from trainers import policy_evaluation
from trainers.completing import Completing, PaidSettings
from trainers.completion_rewards import Reward
from trainers.language import require_language_model
from trainers.objective import Objective
from trainers.sampling import log_probs
from trainers.schedules import require
from trainers.state import Note

Values = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class CompletionReward(Objective):
    """Rewards a model for its completions of a batch's prompts: the mean of its samples.

    Attributes:
        asked: how prompts are read, and completions drawn and paid.
        settings: how many are drawn, and how.
        by_weights: whether the rule moves the weights themselves.
        unrolled: whether the sampler's steps are laid open one after the other, as they must be
            where noise is never added to a kernel, but to what the kernel does to its input.
        better: the metric that chooses checkpoints, and its direction.
    """

    asked: Completing
    settings: "CompletionSettings"
    by_weights: bool
    unrolled: bool
    better: ClassVar[tuple[str, Literal["min", "max"]]] = ("reward", "max")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the values reported per prompt."""
        return (*self.asked.metrics, "exact", "length")

    @property
    def end_token(self) -> int | None:
        return self.asked.prompts.end_token

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Names of those that `evaluate` gives."""
        return policy_evaluation.metrics(self.asked)

    def __call__(self, model: Any, batch: Any) -> tuple[jax.Array, Values]:
        settings, asked = self.settings, self.asked
        batch = asked.prompts.columns(batch)
        prompts, key = batch["prompt"], model.draws()
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
        if not self.by_weights:
            params = jax.lax.stop_gradient(params)

        # Samples have an axis of their own: that of the prompts is the rule's.
        def one(key: jax.Array) -> Any:
            policy = nnx.merge(graphdef, params, rest, copy=True)
            how: dict[str, Any] = {"temperature": settings.temperature, "greedy": settings.greedy}
            found = asked.sampled(policy, prompts, key, unrolled=self.unrolled, **how)
            mask = found.mask.astype(jnp.float32)
            return found.tokens, mask, found.lengths, asked.paid(batch, found)

        keys = jax.random.split(key, settings.completions)
        tokens, mask, lengths, paid = jax.vmap(one)(keys)
        first = jnp.argmax(paid.fault[:, 0] >= 0)
        told = asked.first_fault(model.fault[...], paid.fault[first], prompts, tokens[first])
        model.fault[...] = told
        exact = (tokens == batch["target"][None]).all(2).astype(jnp.float32)
        measured = {"reward": paid.total, **asked.singles(paid), "exact": exact, "length": lengths}
        values = {name: value.mean(0, dtype=jnp.float32) for name, value in measured.items()}
        rewards = values["reward"]
        if not self.by_weights:
            to_come = paid.whole[..., None] + jax.vmap(
                lambda each: returns(each, settings.discount)
            )(paid.each)
            rewards = rewards + self._response(model, prompts, tokens, mask, to_come)
        return rewards, values

    def judged(self, judge: Reward) -> "CompletionReward":
        """The objective paid by a reward model's reward."""
        return dataclasses.replace(self, asked=self.asked.judged(judge))

    def require(self, config: ConfigDict, data: Data, model: Any, answered: Any) -> None:
        """Raises UserError if it is no causal language model."""
        require_language_model(config, data, answered, causal=True)

    def prepare(self, model: Any) -> None:
        """Adds the random stream of the draws, and the first fault of a reward."""
        model.draws = nnx.Rngs(0).default  # A rule reseeds it.
        model.fault = Note(self.asked.no_fault())

    def evaluate(self, model: Any, batch: Any) -> Values:
        """Values per prompt, deterministic, whatever the number of training's samples."""
        batch = self.asked.prompts.columns(batch)
        return policy_evaluation.evaluated(self.asked, self.settings, model, batch)[0]

    def examples(self, model: Any, key: jax.Array, batch: Any) -> list[dict[str, Any]]:
        """A completion of each prompt of a batch, with its target and reward, for a person."""
        temperature = self.settings.eval_temperature
        return policy_evaluation.written(self.asked, temperature, model, key, batch)

    def reason(self, model: Any) -> str | None:
        """Which reward was not finite, and for which completion, if that of the clean pass."""
        return self.asked.why(model.fault[...])

    def _response(
        self,
        model: Any,
        prompts: jax.Array,
        tokens: jax.Array,
        mask: jax.Array,
        to_come: jax.Array,
    ) -> jax.Array:
        """Zero, (B,), with the response of the log-probabilities of (K, B, T) times advantages."""
        baseline = leave_one_out if len(tokens) > 1 else no_baseline
        advantages = jnp.moveaxis(baseline(jnp.moveaxis(to_come, 0, 1)), 1, 0) * mask
        graphdef, state = nnx.split(model)
        length = prompts.shape[1]

        def scored(tokens: jax.Array) -> jax.Array:
            alike = nnx.merge(graphdef, state, copy=True)
            alike.eval()
            seen = jnp.concatenate([prompts, tokens], axis=1)[:, :-1]
            return log_probs(alike(seen, start=length - 1), tokens, self.settings.temperature)

        found = jax.vmap(scored)(tokens)
        return ((found - jax.lax.stop_gradient(found)) * advantages).sum(2).mean(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompletionSettings(PaidSettings):
    """Rewards a language model for what it writes: how much is drawn, and what it is paid.

    Attributes:
        completions: of each prompt, of which the mean is rewarded.
        greedy: whether a completion is the likeliest tokens, not a draw.
    """

    completions: int = 1
    greedy: bool = False
    of_text: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require("trainer.completions", self.completions, 1)

    def on(self, data: Data, rule: Rule) -> CompletionReward:
        """The objective on some data, under a rule.

        Raises:
            UserError: if the likeliest tokens are to be taken, which have no slope.
        """
        if self.greedy and not rule.of_weights:
            raise UserError(
                "trainer.greedy: the likeliest tokens respond to noise on weights alone: use "
                "trainer.name=evolution or weight_perturbation, or draw (trainer.greedy=false)"
            )
        unrolled = getattr(rule, "rank", None) is not None
        return CompletionReward(Completing.of(self, data), self, rule.of_weights, unrolled)

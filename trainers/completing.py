"""How a language model is asked and paid: prompts of the data, completions, rewards."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from grlu.errors import UserError
from trainers.completion_rewards import Paid, Reward, Rewards, rewards_of, short_name
from trainers.policy_data import Prompts
from trainers.sampling import Completions, sample
from trainers.schedules import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """What a trainer is told that draws completions.

    Attributes:
        prompt: tokens of a prompt; by default the data set's, which of a text is 1.
        horizon: most tokens of a completion; by default the rest of an example, as far as a reward
            model sees it.
        end: the text of the token that ends a completion, or None.
        temperature: at which completions are drawn in training.
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
class PaidSettings(PromptSettings):
    """What a trainer is told whose completions are paid.

    Attributes:
        rewards: names of `trainers.COMPLETION_REWARDS`, `token:NUMBER`, `FILE.py:FUNCTION`, or
            "judge", the reward model that the config's `judge` names.
        reward_weights: of each; by default 1.
        reward_mode: what a wrong answer is paid, where a right one is paid 1: "+1" nothing, "±1"
            minus 1.
        discount: of rewards per token; with 0 a token is paid for itself alone.
        eval_samples: k of pass@k, completions of each prompt in evaluation.
        eval_temperature: at which they are drawn.
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
        rewards_of(self.rewards, self.reward_weights)


@dataclasses.dataclass(frozen=True, eq=False)
class Completing:
    """Asks models for completions, and pays them.

    Attributes:
        prompts: how the data are read.
        rewards: what is paid.
        names: of the rewards, if there are several.
        wrong: what a wrong answer is paid.
    """

    prompts: Prompts
    rewards: Rewards
    names: tuple[str, ...]
    wrong: float

    @classmethod
    def of(cls, settings: PaidSettings, data: Any, block: int | None = None) -> "Completing":
        """What a trainer's settings ask for, on some data; `block` is what a judge sees at most."""
        prompts = Prompts.of(data, settings.prompt, settings.horizon, settings.end, block=block)
        for name in settings.rewards:
            if name.startswith("token:") and int(name[6:]) >= prompts.vocabulary:
                raise UserError(
                    f"the reward {name!r} is for a token that there is not: {data.name} has the "
                    f"tokens 0 to {prompts.vocabulary - 1}"
                )
        names = tuple(short_name(name) for name in settings.rewards)
        return cls(
            prompts,
            rewards_of(settings.rewards, settings.reward_weights),
            names if len(names) > 1 else (),
            -1.0 if settings.reward_mode == "±1" else 0.0,
        )

    def judged(self, judge: Reward) -> "Completing":
        """The same, paid by a reward model where the rewards ask for one."""
        return dataclasses.replace(self, rewards=self.rewards.judged(judge))

    def sampled(
        self, model: Any, prompts: jax.Array, key: jax.Array, samples: int = 1, **how: Any
    ) -> Completions:
        """Completions of prompts (B, P), each `samples` of them; `how` as in `sample`."""
        return sample(
            model,
            prompts,
            steps=self.prompts.horizon,
            key=key,
            samples=samples,
            end_token=self.prompts.end_token,
            **how,
        )

    def paid(self, rows: Any, found: Completions) -> Paid:
        """What N completions are paid, given the columns of their prompts."""
        columns = {k: v for k, v in rows.items() if k != "prompt"}
        mask = found.mask.astype(jnp.float32)
        return self.rewards(rows["prompt"], found.tokens, mask=mask, wrong=self.wrong, **columns)

    def singles(self, paid: Paid) -> dict[str, jax.Array]:
        """The rewards of each function, (N,), by the name of its metric."""
        if not self.names:
            return {}
        return {f"reward_{n}": v for n, v in zip(self.names, paid.singles, strict=True)}

    def no_fault(self) -> jax.Array:
        """A fault that there is not, as `first_fault` tells them."""
        return jnp.full(1 + self.prompts.length + self.prompts.horizon, -1, jnp.int32)

    def first_fault(
        self, before: jax.Array, fault: jax.Array, prompts: jax.Array, tokens: jax.Array
    ) -> jax.Array:
        """The first reward of a run that was not finite, with its prompt and its completion.

        Args:
            before: what was told before, int32 of shape (1 + P + T,), -1 if there was none.
            fault: `Paid.fault`, of the completions `tokens` (N, T) of `prompts` (N, P).
        """
        told = jnp.concatenate([fault[:1], prompts[fault[1]], tokens[fault[1]]])
        return jnp.where((before[0] < 0) & (fault[0] >= 0), told, before)

    def why(self, told: jax.Array) -> str | None:
        """A sentence on a fault, or on what a Python reward raised elsewhere; None without any."""
        reward, *tokens = (int(x) for x in told)
        if reward < 0:
            raised = self.rewards.raised
            return "; ".join(f"the reward {n!r} raised {w}" for n, w in raised.items()) or None
        length, text = self.prompts.length, self.prompts.text
        return self.rewards.why(reward, text(tokens[:length]), text(tokens[length:]))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the rewards' metrics."""
        return ("reward", *(f"reward_{name}" for name in self.names))


def repeated(batch: Any, times: int) -> Any:
    """Each row of a batch so many times, its copies next to each other."""
    return jax.tree.map(lambda a: jnp.repeat(a, times, axis=0), batch)

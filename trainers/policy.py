"""The policy trainer: completions are drawn, paid, and made more or less likely.

REINFORCE, PPO and GRPO are this trainer under other settings (`trainers/policy_settings.py`). A
step is: sample (`trainers/sampling.py`), pay (`trainers/completion_rewards.py`), compare
(`grlu/advantages.py`), learn (`trainers/policy_updates.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from grlu import kl
from grlu.advantages import ADVANTAGES, gae, returns, same, whitened
from grlu.errors import UserError
from trainers import policy_evaluation
from trainers.completing import Completing, repeated
from trainers.completion_rewards import Reward
from trainers.critic import Critic, critic_of
from trainers.diagnostics import checklist
from trainers.policy_settings import PolicySettings
from trainers.policy_state import PolicyState
from trainers.policy_updates import Drawn, Learner
from trainers.protocol import TrainerLike
from trainers.references import Reference, bigram, bigram_table, frozen
from trainers.sampling import Completions

Batch = Any
Values = dict[str, jax.Array]


class PolicyTrainer(TrainerLike):
    """Pure functions of a run: `init`, `step`, `evaluate`.

    Attributes:
        metrics: names of the values that `step` gives per prompt.
        evaluated: names of those that `evaluate` gives.
        better: the metric that chooses checkpoints, and its direction.
        block: updates that are taken at once: 1.
        tiny: whether a step is operations of a microsecond each.
    """

    better: tuple[str, Literal["min", "max"]] = ("reward", "max")
    block = 1
    tiny = False

    def __init__(
        self,
        settings: PolicySettings,
        make_model: Callable[[nnx.Rngs], Any],
        steps_per_epoch: int,
        data: Any,
        judge: Reward | None = None,
        reference: Reference | None = None,
    ):
        self.settings = settings
        self.learning_rate = settings.rate(steps_per_epoch)
        self._make_model = make_model
        model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
        model.eval()
        block = model.block if "judge" in settings.rewards else None
        self.asked = Completing.of(settings, data, block)
        if judge is not None:
            self.asked = self.asked.judged(judge)
        self.prompts = self.asked.prompts
        self._graphdef = nnx.graphdef(model)
        self.prompts.require_room(model.block)
        self.reference = reference or self._reference_of(settings.reference, data)
        self._critic_graphdef = None
        if settings.advantage == "gae" and settings.critic == "apart":
            critic = nnx.eval_shape(lambda: self._make_critic(nnx.Rngs(0)))
            critic.eval()
            self._critic_graphdef = nnx.graphdef(critic)
        shared = settings.advantage == "gae" and settings.critic == "shared"
        if shared and getattr(model, "value", None) is None:
            raise UserError("trainer.critic=shared needs the value head of model.value_head=true")
        self.learner = Learner(
            settings,
            self._graphdef,
            self._critic_graphdef,
            None if self.reference is None else self.reference.log_probs,
            self.prompts.length,
            self.prompts.horizon,
            self.learning_rate,
            settings.rate(steps_per_epoch, settings.value_learning_rate),
        )
        self.metrics = (
            *self.asked.metrics,
            *self.learner.metrics,
            *(["zero_std"] if settings.samples > 1 else []),
            "length",
            "repetition",
            *(["cut_off"] if settings.end else []),
        )
        self.evaluated = (
            *policy_evaluation.metrics(self.asked),
            *(["kl"] if self.reference else []),
        )

    def init(self, key: jax.Array) -> PolicyState:
        """The state before the first step; the model is drawn from `key`."""
        init_key, run_key = jax.random.split(key)
        model = self._make_model(nnx.Rngs(init_key))
        model.eval()
        _, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
        critic: Any = None
        if self._critic_graphdef is not None:
            made = self._make_critic(nnx.Rngs(jax.random.fold_in(init_key, 1)))
            made.eval()
            critic = nnx.split(made, nnx.Param, ...)[1:]
        reference = None
        if self.reference is not None:
            reference = self.reference.init(jax.random.fold_in(init_key, 2), params, rest)
        return PolicyState(
            step=jnp.zeros((), jnp.int32),
            key=run_key,
            params=params,
            rest=rest,
            opt_state=self.learner.optimizer.init(params),
            average=None,
            reference=reference,
            critic=critic,
            critic_opt=None if critic is None else self.learner.critic_optimizer.init(critic[0]),
            tokens=jnp.zeros((), jnp.int32),
            fault=self.asked.no_fault(),
            follows=self.reference is not None and self.reference.follows,
        )

    def step(self, state: PolicyState, batch: Batch) -> tuple[PolicyState, Values]:
        """One rollout and the updates from it; the values, per prompt, are of before them."""
        settings = self.settings
        key = jax.random.fold_in(state.key, state.step)
        draw, shuffle = jax.random.split(key)
        batch = self.prompts.columns(batch)
        found = self.asked.sampled(
            self.model(state),
            batch["prompt"],
            draw,
            settings.samples,
            temperature=settings.temperature,
        )
        rows = repeated(batch, settings.samples)
        mask = found.mask.astype(jnp.float32)
        paid = self.asked.paid(rows, found)
        beta = kl.coefficient(settings.beta_kl, state.tokens, settings.kl_warmup_tokens)
        sequences = jnp.concatenate([rows["prompt"], found.tokens], axis=1)
        each = paid.each
        if settings.kl_in == "reward" and self.reference is not None:
            each = each - beta * self.learner.divergence(state, sequences) * mask
        old, values = self.learner.scored(state, sequences, found.log_probs)
        advantages, targets = self._credited(paid.whole, each, values, mask)
        drawn = Drawn(
            sequences=sequences,
            mask=mask,
            sampled=found.log_probs,
            target=rows["target"],
            old=old,
            advantages=advantages,
            values=values,
            value_targets=targets,
        )
        params, critic, opt, critic_opt, measured = self.learner.learn(state, drawn, beta, shuffle)
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt,
            critic=critic,
            critic_opt=critic_opt,
            # Enough for any warm-up, and never beyond an int32.
            tokens=jnp.minimum(state.tokens + found.lengths.sum(), 2**30),
            fault=self.asked.first_fault(state.fault, paid.fault, rows["prompt"], found.tokens),
        )
        grouped = (len(batch["prompt"]), settings.samples)
        metrics = {name: jnp.broadcast_to(v, grouped[:1]) for name, v in measured.items()}
        per_sample = {
            "reward": paid.total,
            "length": found.lengths,
            "repetition": _repetition(found),
        }
        per_sample |= self.asked.singles(paid)
        if self.prompts.end_token is not None:
            ended = (found.tokens == self.prompts.end_token).any(1)
            per_sample["cut_off"] = 1.0 - ended
        metrics |= {n: v.reshape(grouped).mean(1) for n, v in per_sample.items()}
        if settings.samples > 1:
            by_token = jnp.concatenate([paid.whole[:, None], paid.each], axis=1)
            alike = same(by_token.reshape(*grouped, -1))
            metrics["zero_std"] = alike.astype(jnp.float32)
        return state, metrics

    def evaluate(self, state: PolicyState, batch: Batch) -> Values:
        """Values per prompt, deterministic, whatever the number of training's samples.

        `kl` is of policy and reference at training's temperature, by what is drawn at evaluation's.
        """
        batch, model = self.prompts.columns(batch), self.model(state)
        values, found = policy_evaluation.evaluated(self.asked, self.settings, model, batch)
        if self.reference is not None:
            samples = self.settings.eval_samples
            rows = repeated(batch["prompt"], samples)
            sequences = jnp.concatenate([rows, found.tokens], axis=1)
            log_p, _ = self.learner.log_policy(state.params, state.rest, sequences)
            log_q = self.reference.log_probs(state.reference, sequences, self.prompts.length)
            divergence = (kl.exact(log_p, log_q) * found.mask).sum(1)
            values["kl"] = divergence.reshape(-1, samples).mean(1)
        return values

    def model(self, state: PolicyState) -> Any:
        """The policy, in evaluation mode."""
        return nnx.merge(self._graphdef, state.params, state.rest, copy=True)

    @property
    def end_token(self) -> int | None:
        return self.prompts.end_token

    def scales(self, step: jax.Array) -> Values:
        """What the schedules say at a step, for the log."""
        return {"learning_rate": self.learning_rate(step)}

    def tokens(self, values: Mapping[str, float]) -> float:
        """Tokens that are drawn for a prompt."""
        return values["train_length"] * self.settings.samples

    def diagnose(self, values: Mapping[str, float]) -> list[tuple[bool, str]]:
        """What holds of some steps' metrics, and what should (`trainers/diagnostics.py`)."""
        beta = self.settings.beta_kl
        return checklist(values, off_policy=self.learner.updates > 1, beta=beta)

    def examples(self, state: PolicyState, batch: Batch) -> list[dict[str, Any]]:
        """A completion of each prompt of a batch, with its target and reward, for a person."""
        model, temperature = self.model(state), self.settings.eval_temperature
        return policy_evaluation.written(self.asked, temperature, model, state.key, batch)

    def reason(self, state: PolicyState) -> str:
        """Why a value was not finite, if a reward was the reason; else what may help."""
        return self.asked.why(state.fault) or self.settings.remedy

    def _credited(
        self, whole: jax.Array, each: jax.Array, values: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Advantages, and what a critic is to learn, (N, T), by rewards (N,) and (N, T)."""
        settings, targets = self.settings, values
        if settings.advantage == "gae":
            last = mask * (jnp.cumsum(mask, 1) == mask.sum(1, keepdims=True))
            rewards, decay = each + whole[:, None] * last, settings.gae_decay
            advantages, targets = gae(
                rewards, values, mask, discount=settings.discount, decay=decay
            )
        else:
            to_come = whole[:, None] + returns(each, settings.discount)
            by_prompt = to_come.reshape(-1, settings.samples, to_come.shape[1])
            advantages = ADVANTAGES[settings.advantage](by_prompt).reshape(to_come.shape) * mask
        return (whitened(advantages, mask) if settings.whiten else advantages), targets

    def _reference_of(self, name: str, data: Any) -> Reference | None:
        temperature = self.settings.temperature
        if name == "none":
            return None
        if name == "bigram":
            sequences = self.prompts.sequences(data)
            return bigram(bigram_table(sequences, self.prompts.vocabulary), temperature)
        if name == "start":
            return frozen(self._graphdef, temperature, None)
        if name == "random":

            def draw(key: jax.Array) -> Any:
                model = self._make_model(nnx.Rngs(key))
                model.eval()
                return nnx.split(model, nnx.Param, ...)[1:]

            return frozen(self._graphdef, temperature, draw)
        raise UserError(
            f"trainer.reference must be start, random, bigram, none or the folder of a run, got "
            f"{name!r}: a run is opened by trainers.train, or given as `reference`"
        )

    def _make_critic(self, rngs: nnx.Rngs) -> Critic:
        return critic_of(self._make_model(rngs), rngs)


def _repetition(found: Completions) -> jax.Array:
    """Share of a completion's tokens that are the same as the one before, (N,)."""
    again = (found.tokens[:, 1:] == found.tokens[:, :-1]) & found.mask[:, 1:]
    return again.sum(1) / jnp.maximum(found.lengths - 1, 1)

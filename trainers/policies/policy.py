"""The policy trainer: sample completions, score them, change their probability.

REINFORCE, PPO and GRPO are this trainer with other settings. A step samples completions
(`completions/sampling.py`), scores them (`completions/rewards.py`), computes advantages
(`grlu/advantages.py`) and updates the policy (`policies/learner.py`).
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from grlu import kl
from grlu.advantages import ADVANTAGES, gae, returns, same, whitened
from grlu.errors import UserError
from trainers.completions import evaluation
from trainers.completions.rewards import Judge
from trainers.completions.rollout import Rollout, repeat_rows
from trainers.completions.scoring import Scores
from trainers.loop.trainer import BaseTrainer, Values
from trainers.policies.critic import Critic, make_critic
from trainers.policies.diagnostics import checklist
from trainers.policies.learner import Experience, Learner
from trainers.policies.reference import Reference, bigram, bigram_table, model_reference
from trainers.policies.settings import PolicySettings
from trainers.policies.state import PolicyState

Batch = Any


class PolicyTrainer(BaseTrainer):
    """Pure functions of a policy's run: `init`, `step`, `evaluate`.

    Args:
        settings: the trainer's settings.
        make_model: rngs -> the policy.
        steps_per_epoch: steps of an epoch, for schedules.
        data: the data set.
        judge: the reward model behind the reward "judge", or None.
        reference: the reference policy, where `trainer.reference` names a run.

    Attributes:
        metrics: names of the values of `step`, per prompt.
        evaluated: names of the values of `evaluate`, per prompt.
        better: metric that selects checkpoints, and its direction.
        block: updates in one program: 1.
        tiny: whether a step consists of operations of a microsecond each.
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
        judge: Judge | None = None,
        reference: Reference | None = None,
    ):
        self.settings = settings
        self.learning_rate = settings.rate(steps_per_epoch)
        self._make_model = make_model
        model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
        model.eval()
        block = model.block if "judge" in settings.rewards else None
        self.rollout = Rollout.from_settings(settings, data, block, judge)
        self.evidence = self.rollout.evidence_shapes(settings.batch_size, settings.samples)
        self.prompts = self.rollout.prompts
        self._graphdef = nnx.graphdef(model)
        self.prompts.require_room(model.block)
        self.reference = reference or self._make_reference(data)
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
            *self.rollout.metrics,
            *self.learner.metrics,
            *(["zero_std"] if settings.samples > 1 else []),
            "length",
            "repetition",
            *(["cut_off"] if settings.end else []),
        )
        of_reference = ("kl",) if self.reference else ()
        self.evaluated = (*evaluation.metrics(self.rollout), *of_reference)

    def init(self, key: jax.Array) -> PolicyState:
        """Return the state before the first step, with a model initialised from `key`."""
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
            follows=self.reference is not None and self.reference.follows,
        )

    def step(self, state: PolicyState, batch: Batch) -> tuple[PolicyState, Values]:
        """Sample one rollout and update on it; the values, per prompt, precede the updates."""
        settings = self.settings
        key = jax.random.fold_in(state.key, state.step)
        sampling, shuffle = jax.random.split(key)
        batch = self.prompts.columns(batch)
        found = self.rollout.sample(
            self.model(state),
            batch["prompt"],
            sampling,
            settings.samples,
            temperature=settings.temperature,
        )
        rows = repeat_rows(batch, settings.samples)
        mask = found.mask.astype(jnp.float32)
        scores = self.rollout.score(rows, found)
        beta = kl.coefficient(settings.beta_kl, state.tokens, settings.kl_warmup_tokens)
        sequences = jnp.concatenate([rows["prompt"], found.tokens], axis=1)
        per_token = scores.per_token
        if settings.kl_in == "reward" and self.reference is not None:
            per_token = per_token - beta * self.learner.divergence(state, sequences) * mask
        old, values = self.learner.before_updates(state, sequences, found.log_probs)
        advantages, targets = self._advantages(scores.per_completion, per_token, values, mask)
        experience = Experience(
            sequences=sequences,
            mask=mask,
            sampled=found.log_probs,
            target=rows["target"],
            old=old,
            advantages=advantages,
            values=values,
            value_targets=targets,
        )
        params, critic, opt, critic_opt, measured = self.learner.learn(
            state, experience, beta, shuffle
        )
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt,
            critic=critic,
            critic_opt=critic_opt,
            # Enough for any warm-up, within the range of int32.
            tokens=jnp.minimum(state.tokens + found.lengths.sum(), 2**30),
        )
        grouped = (len(batch["prompt"]), settings.samples)
        metrics = {name: jnp.broadcast_to(v, grouped[:1]) for name, v in measured.items()}
        per_sample = {
            "reward": scores.total,
            "length": found.lengths,
            "repetition": found.repetition,
        }
        per_sample |= self.rollout.scores_by_name(scores)
        if self.prompts.end_token is not None:
            ended = (found.tokens == self.prompts.end_token).any(1)
            per_sample["cut_off"] = 1.0 - ended
        metrics |= {n: v.reshape(grouped).mean(1) for n, v in per_sample.items()}
        if settings.samples > 1:
            metrics["zero_std"] = _same_scores(scores, grouped).astype(jnp.float32)
        evidence = self.rollout.evidence(rows["prompt"], found.tokens, scores, settings.samples)
        return state, metrics | evidence

    def evaluate(self, state: PolicyState, batch: Batch) -> Values:
        """Return values per prompt, deterministic, for any number of samples in training.

        `kl` compares policy and reference at the training temperature, on completions sampled at
        the evaluation temperature.
        """
        batch, model = self.prompts.columns(batch), self.model(state)
        values, found = evaluation.evaluate(self.rollout, self.settings, model, batch)
        if self.reference is not None:
            samples = self.settings.eval_samples
            rows = repeat_rows(batch["prompt"], samples)
            sequences = jnp.concatenate([rows, found.tokens], axis=1)
            log_p, _ = self.learner.log_policy(state.params, state.rest, sequences)
            log_q = self.reference.log_probs(state.reference, sequences, self.prompts.length)
            divergence = (kl.exact(log_p, log_q) * found.mask).sum(1)
            values["kl"] = divergence.reshape(-1, samples).mean(1)
        return values

    def model(self, state: PolicyState) -> Any:
        """Return the policy in evaluation mode."""
        return nnx.merge(self._graphdef, state.params, state.rest, copy=True)

    @property
    def end_token(self) -> int | None:
        return self.prompts.end_token

    def scales(self, step: jax.Array) -> Values:
        """Return the learning rate at a step, for the log."""
        return {"learning_rate": self.learning_rate(step)}

    def tokens(self, values: Mapping[str, float]) -> float:
        """Return the number of tokens sampled per prompt."""
        return values["train_length"] * self.settings.samples

    def diagnose(self, values: Mapping[str, float]) -> list[tuple[bool, str]]:
        """Return the checks of `policies/diagnostics.py` on the metrics of some steps."""
        beta = self.settings.beta_kl
        return checklist(values, off_policy=self.learner.updates > 1, beta=beta)

    def examples(self, state: PolicyState, batch: Batch) -> list[dict[str, Any]]:
        """Return a completion of each prompt of a batch, with its target and reward."""
        model, temperature = self.model(state), self.settings.eval_temperature
        return evaluation.examples(self.rollout, temperature, model, state.key, batch)

    @property
    def constants(self) -> Judge | None:
        """The reward model, if the reward "judge" has one."""
        return self.rollout.judge

    def bind(self, constants: Judge) -> "PolicyTrainer":
        """Return this trainer with another reward model."""
        bound = copy.copy(self)
        bound.rollout = self.rollout.bind(constants)
        return bound

    def reason(self, evidence: Mapping[str, Any]) -> str:
        """Return which reward was not finite, if one was not; else what may help."""
        return self.rollout.explain(evidence) or self.settings.remedy

    def _advantages(
        self, per_completion: jax.Array, per_token: jax.Array, values: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return advantages and the critic's targets, (N, T).

        Args:
            per_completion: rewards, (N,).
            per_token: rewards, (N, T).
            values: the critic's estimates before each token, (N, T).
            mask: 1 at the tokens of the completions, (N, T).
        """
        settings, targets = self.settings, values
        if settings.advantage == "gae":
            last = mask * (jnp.cumsum(mask, 1) == mask.sum(1, keepdims=True))
            rewards, decay = per_token + per_completion[:, None] * last, settings.gae_decay
            advantages, targets = gae(
                rewards, values, mask, discount=settings.discount, decay=decay
            )
        else:
            later = per_completion[:, None] + returns(per_token, settings.discount)
            by_prompt = later.reshape(-1, settings.samples, later.shape[1])
            advantages = ADVANTAGES[settings.advantage](by_prompt).reshape(later.shape) * mask
        return (whitened(advantages, mask) if settings.whiten else advantages), targets

    def _make_reference(self, data: Any) -> Reference | None:
        settings, prompts = self.settings, self.prompts
        if settings.reference_name == "bigram":
            table = bigram_table(prompts.sequences(data), prompts.vocabulary)
            return bigram(table, settings.temperature)
        model = self._graphdef, self._make_model
        return model_reference(settings.reference_name, *model, settings.temperature)

    def _make_critic(self, rngs: nnx.Rngs) -> Critic:
        return make_critic(self._make_model(rngs), rngs)


def _same_scores(scores: Scores, grouped: tuple[int, int]) -> jax.Array:
    """Return whether all samples of a prompt got the same rewards at each token, (B,)."""
    by_token = jnp.concatenate([scores.per_completion[:, None], scores.per_token], axis=1)
    return same(by_token.reshape(*grouped, -1))

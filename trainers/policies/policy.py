"""The policy trainer: sample completions, score them, change their probability.

REINFORCE, PPO and GRPO are settings of this trainer. A step samples completions
(`completions/sampling.py`), scores them (`completions/rewards.py`), computes advantages
(`grlu/advantages.py`) and updates the policy (`policies/learner.py`).
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx, struct

from grlu import kl
from grlu.advantages import ADVANTAGES, gae, returns, same, whitened
from grlu.errors import UserError
from trainers.completions import evaluation
from trainers.completions.rewards import Judge
from trainers.completions.rollout import Rollout
from trainers.loop.state import TrainState
from trainers.loop.trainer import Values
from trainers.policies.base import CompletionTrainer, Critic, variables
from trainers.policies.diagnostics import checklist
from trainers.policies.learner import Experience, Learner
from trainers.policies.reference import Reference, named_reference
from trainers.policies.settings import PolicySettings


class PolicyState(TrainState):
    """State of a policy's run.

    Attributes:
        reference: arrays of the reference policy, or None.
        critic: variables of a separate critic, trained and other, or None.
        critic_opt: state of its optimizer, or None.
        tokens: number of tokens sampled so far, int32, for the warm-up of the KL penalty.
        follows: True if the reference policy has the initial weights of the run.
    """

    reference: Any
    critic: Any
    critic_opt: Any
    tokens: jax.Array
    follows: bool = struct.field(pytree_node=False, default=False)

    def begun_from(self, other: TrainState) -> "PolicyState":
        """Return this state with another run's weights, also in the reference if it `follows`."""
        state: Any = super().begun_from(other)
        if not self.follows:
            return state
        return state.replace(reference=jax.tree.map(jnp.copy, (state.params, state.rest)))


class PolicyTrainer(CompletionTrainer):
    """Pure functions of a policy's run: `init`, `step`, `evaluate`; their values are per prompt.

    `judge` is the reward model behind the reward "judge", and `reference` the reference policy
    if `trainer.reference` names a run.
    """

    settings: PolicySettings
    rollout: Rollout
    better: tuple[str, Literal["min", "max"]] = ("reward", "max")

    def __init__(
        self,
        settings: PolicySettings,
        make_model: Callable[[nnx.Rngs], Any],
        steps_per_epoch: int,
        data: Any,
        judge: Judge | None = None,
        reference: Reference | None = None,
    ):
        self.settings, self._make_model = settings, make_model
        self.learning_rate = settings.rate(steps_per_epoch)
        model = nnx.eval_shape(lambda: self._make_policy(nnx.Rngs(0)))
        self._graphdef = nnx.graphdef(model)
        block = model.block if "judge" in settings.rewards else None
        self.rollout = Rollout.from_settings(settings, data, block, judge)
        self.evidence = self.rollout.evidence_shapes(settings.batch_size, settings.samples)
        prompts = self.rollout.prompts
        prompts.require_room(model.block)
        policy = self._graphdef, self._make_policy
        self.reference = reference or named_reference(settings, data, prompts, *policy)
        critic_graphdef, with_critic = None, settings.advantage == "gae"
        self._critic_apart = with_critic and settings.critic == "apart"
        if self._critic_apart:
            critic_graphdef = nnx.graphdef(nnx.eval_shape(lambda: self._make_critic(nnx.Rngs(0))))
        elif with_critic and getattr(model, "value", None) is None:
            raise UserError("trainer.critic=shared needs the value head of model.value_head=true")
        self.learner = Learner(
            settings,
            self._graphdef,
            critic_graphdef,
            None if self.reference is None else self.reference.log_probs,
            prompts,
            self.learning_rate,
            settings.rate(steps_per_epoch, settings.value_learning_rate),
        )
        spread = ["zero_std"] if settings.samples > 1 else []
        texts = ["length", "repetition", *(["cut_off"] if settings.end else [])]
        self.metrics = (*self.rollout.metrics, *self.learner.metrics, *spread, *texts)
        self.evaluated = (*evaluation.metrics(self.rollout), *(["kl"] if self.reference else []))

    def init(self, key: jax.Array) -> PolicyState:
        init_key, run_key = jax.random.split(key)
        params, rest = variables(self._make_policy(nnx.Rngs(init_key)))
        critic = critic_opt = reference = None
        if self._critic_apart:
            critic = variables(self._make_critic(nnx.Rngs(jax.random.fold_in(init_key, 1))))
            critic_opt = self.learner.critic_optimizer.init(critic[0])
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
            critic_opt=critic_opt,
            tokens=jnp.zeros((), jnp.int32),
            follows=self.reference is not None and self.reference.follows,
        )

    def step(self, state: PolicyState, batch: Any) -> tuple[PolicyState, Values]:
        """Sample one rollout and update on it; the values, per prompt, precede the updates."""
        settings, samples = self.settings, self.settings.samples
        key = jax.random.fold_in(state.key, state.step)
        sampling, shuffle = jax.random.split(key)
        sampled = self.rollout.run(self.model(state), batch, sampling, samples)
        found, sequences = sampled.completions, sampled.sequences
        mask, scores = sampled.mask, sampled.scores
        beta = kl.coefficient(settings.beta_kl, state.tokens, settings.kl_warmup_tokens)
        per_token = scores.per_token
        if settings.kl_in == "reward" and self.reference is not None:
            per_token = per_token - beta * self.learner.divergence(state, sequences) * mask
        old, values = self.learner.before_updates(state, sequences, found.log_probs)
        advantages, targets = self._advantages(scores.per_completion, per_token, values, mask)
        experience = Experience(
            sequences=sequences,
            mask=mask,
            sampled=found.log_probs,
            target=sampled.columns["target"],
            old=old,
            advantages=advantages,
            values=values,
            value_targets=targets,
        )
        state, measured = self.learner.learn(state, experience, beta, shuffle)
        # Saturates within the range of int32, beyond any warm-up.
        tokens = jnp.minimum(state.tokens + found.lengths.sum(), 2**30)
        state = state.replace(step=state.step + 1, tokens=tokens)
        grouped = (len(sequences) // samples, samples)
        metrics = {name: jnp.broadcast_to(v, grouped[:1]) for name, v in measured.items()}
        per_sample = {"length": found.lengths, "repetition": found.repetition, **sampled.rewards}
        if self.end_token is not None:
            ended = (found.tokens == self.end_token).any(1)
            per_sample["cut_off"] = 1.0 - ended
        metrics |= {n: v.reshape(grouped).mean(1) for n, v in per_sample.items()}
        if samples > 1:
            by_token = jnp.concatenate([scores.per_completion[:, None], scores.per_token], axis=1)
            metrics["zero_std"] = same(by_token.reshape(*grouped, -1)).astype(jnp.float32)
        return state, metrics | sampled.evidence

    def evaluate(self, state: PolicyState, batch: Any) -> Values:
        """Return deterministic values per prompt, whatever the number of training samples.

        `kl` compares policy and reference at the training temperature, on completions sampled at
        the evaluation temperature.
        """
        settings, model = self.settings, self.model(state)
        values, found = evaluation.evaluate(self.rollout, settings, model, batch)
        if self.reference is not None:
            length = self.rollout.prompts.length
            log_p, _ = self.learner.log_policy(state.params, state.rest, found.sequences)
            log_q = self.reference.log_probs(state.reference, found.sequences, length)
            divergence = (kl.exact(log_p, log_q) * found.mask).sum(1)
            values["kl"] = divergence.reshape(-1, settings.eval_samples).mean(1)
        return values

    def tokens(self, values: Mapping[str, float]) -> float:
        """Return the number of tokens sampled per prompt."""
        return values["train_length"] * self.settings.samples

    def diagnose(self, values: Mapping[str, float]) -> list[tuple[bool, str]]:
        beta = self.settings.beta_kl
        return checklist(values, off_policy=self.learner.updates > 1, beta=beta)

    def examples(self, state: PolicyState, batch: Any) -> list[dict[str, Any]]:
        model, temperature = self.model(state), self.settings.eval_temperature
        return evaluation.examples(self.rollout, temperature, model, state.key, batch)

    @property
    def constants(self) -> Judge | None:
        return self.rollout.judge

    def bind(self, constants: Judge) -> "PolicyTrainer":
        bound = copy.copy(self)
        bound.rollout = self.rollout.bind(constants)
        return bound

    def _advantages(
        self, per_completion: jax.Array, per_token: jax.Array, values: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return advantages and the critic's targets, (N, T), from rewards (N,) and (N, T)."""
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

    def _make_policy(self, rngs: nnx.Rngs) -> Any:
        model = self._make_model(rngs)
        model.eval()
        return model

    def _make_critic(self, rngs: nnx.Rngs) -> Critic:
        critic = Critic(self._make_model(rngs), rngs)
        critic.eval()
        return critic

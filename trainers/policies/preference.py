"""Learning from preferences: a reward model (Bradley-Terry), or a policy without one (DPO).

A step samples pairs of completions of each prompt from a frozen policy, the one with whose weights
the run starts. The completion with the higher `utility` is preferred, and the model learns to
predict that. Alternatively the pairs come from a data set of recorded preferences
(`dataset.name=preferences:PATH`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from grlu import kl
from grlu.preferences import bradley_terry, dpo, dpo_margin
from trainers.completions.evaluation import examples, key_from
from trainers.completions.prompts import Prompts
from trainers.completions.rewards import Judge
from trainers.completions.rollout import Rollout, repeat_rows
from trainers.completions.sampling import Completions
from trainers.completions.scoring import rewards_from
from trainers.loop.state import TrainState
from trainers.loop.trainer import BaseTrainer, Values
from trainers.policies.critic import make_critic
from trainers.policies.preference_pairs import (
    PreferencePairs,
    Tokens,
    preferred_pairs,
    recorded_pairs,
)
from trainers.policies.preference_settings import PreferenceSettings
from trainers.policies.state import PreferenceState


class PreferenceTrainer(BaseTrainer):
    """Pure functions of a run that learns from preferences: `init`, `step`, `evaluate`.

    Args:
        settings: the trainer's settings.
        make_model: rngs -> the policy.
        steps_per_epoch: steps of an epoch, for schedules.
        data: the data set.

    Attributes:
        metrics: names of the values of `step`, per prompt. `pair_accuracy` is the fraction of pairs
            in which the model prefers the chosen completion, `margin` by how much. Of sampled pairs
            also `worth`, the utility of the frozen policy's completions, and `worth_spread`, its
            standard deviation among those of a prompt.
        evaluated: names of the values of `evaluate`. Of DPO on sampled pairs also `utility`, that
            of the policy's own completions minus that of the frozen policy's, and `kl` between the
            two, in nats per completion.
        better: metric that selects checkpoints, and its direction.
        block: updates in one program: 1.
        tiny: whether a step consists of operations of a microsecond each.
    """

    block = 1
    tiny = False

    def __init__(
        self,
        settings: PreferenceSettings,
        make_model: Callable[[nnx.Rngs], Any],
        steps_per_epoch: int,
        data: Any,
    ):
        self.settings = settings
        self._make_model = make_model
        policy, learner = nnx.eval_shape(
            lambda: (self._make_policy(nnx.Rngs(0)), self._make_learner(nnx.Rngs(0)))
        )
        self.rollout: Rollout | None = None
        if not data.pairs:
            prompts = Prompts.from_data(
                data,
                settings.prompt,
                settings.horizon,
                settings.end,
                block=policy.block if settings.scores else None,
            )
            prompts.require_room(policy.block, scored=settings.scores)
            utility = rewards_from(settings.utility, settings.utility_weights)
            self.rollout = Rollout(prompts, utility, names=(), wrong=0.0)
            shape = settings.batch_size, 2 * settings.pairs
            self.evidence = self.rollout.evidence_shapes(*shape)
        self.learning_rate = settings.rate(steps_per_epoch)
        self.optimizer = settings.transformation(self.learning_rate)
        self.metrics: tuple[str, ...] = ("loss", "pair_accuracy", "margin", "length")
        self.metrics += () if data.pairs else ("worth", "worth_spread")
        self._samples_itself = not (settings.scores or data.pairs)
        self.evaluated = self.metrics + (("utility", "kl") if self._samples_itself else ())
        self.better: tuple[str, Literal["min", "max"]] = ("pair_accuracy", "max")
        if self._samples_itself:
            self.better = ("utility", "max")
        self._policy_graphdef, self._graphdef = nnx.graphdef(policy), nnx.graphdef(learner)

    def init(self, key: jax.Array) -> PreferenceState:
        """Return the state before the first step, with a model initialised from `key`."""
        init_key, run_key = jax.random.split(key)
        _, *policy = nnx.split(self._make_policy(nnx.Rngs(init_key)), nnx.Param, ...)
        learner = self._make_learner(nnx.Rngs(init_key))
        _, params, rest = nnx.split(learner, nnx.Param, ...)  # type: ignore[misc]
        return PreferenceState(
            step=jnp.zeros((), jnp.int32),
            key=run_key,
            params=params,
            rest=rest,
            opt_state=self.optimizer.init(params),
            average=None,
            drawn_from=tuple(policy),
        )

    def step(self, state: PreferenceState, batch: Any) -> tuple[PreferenceState, Values]:
        """Take one step; the values, per prompt, precede the update."""
        key = jax.random.fold_in(state.key, state.step)
        pairs, evidence = self._pairs(state, batch, key)

        def loss(params: Any) -> tuple[jax.Array, Values]:
            values = self._compare(state, params, pairs)
            return values["loss"].mean(), values

        grads, values = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return state, values | evidence

    def evaluate(self, state: PreferenceState, batch: Any) -> Values:
        """Return values per prompt, deterministic, with preferences free of doubt."""
        if self.rollout is None:
            return self._compare(state, state.params, recorded_pairs(batch))
        key = key_from(batch["tokens"])
        pairs, _ = self._pairs(state, batch, key, doubt=0.0)
        values = self._compare(state, state.params, pairs)
        if not self._samples_itself:
            return values
        batch = self.rollout.prompts.columns(batch)
        found = self._sample(self.model(state), batch["prompt"], key, 1)
        sequences = jnp.concatenate([batch["prompt"], found.tokens], axis=1)
        log_p, log_q = (
            self._log_policy(graphdef, variables, sequences, self.rollout.prompts.length - 1)
            for graphdef, variables in self._policies(state, state.params)
        )
        return values | {
            "utility": self.rollout.score(batch, found).total - values["worth"],
            "kl": (kl.exact(log_p, log_q) * found.mask).sum(1),
        }

    def examples(self, state: PreferenceState, batch: Any) -> list[dict[str, Any]]:
        """Return a policy's completion of each prompt of a batch; a reward model has none."""
        if self.rollout is None or self.settings.scores:
            return []
        temperature = self.settings.temperature
        return examples(self.rollout, temperature, self.model(state), state.key, batch)

    def diagnose(self, values: Mapping[str, float]) -> list[tuple[bool, str]]:
        """Check that the utility of a prompt's completions differs."""
        if "worth_spread" not in values:
            return []
        spread = values["worth_spread"]
        found = f"the utility of a prompt's completions has standard deviation {spread:.2g}"
        same = f"{found}: no signal; is it the same for every completion?"
        return [(spread > 0, found if spread > 0 else same)]

    def reason(self, evidence: Mapping[str, Any]) -> str:
        """Return which utility was not finite, if one was not; else what may help."""
        found = None if self.rollout is None else self.rollout.explain(evidence)
        return found or self.settings.remedy

    def model(self, state: PreferenceState) -> Any:
        """Return the model in evaluation mode; a reward model has a method `score`."""
        return nnx.merge(self._graphdef, state.params, state.rest, copy=True)

    def judge(self, state: TrainState) -> Judge:
        """Return the trained reward model, to score the completions of a policy."""
        return Judge((state.params, state.rest), self._graphdef)

    @property
    def end_token(self) -> int | None:
        return None if self.rollout is None else self.rollout.prompts.end_token

    def scales(self, step: jax.Array) -> Values:
        """Return the learning rate at a step, for the log."""
        return {"learning_rate": self.learning_rate(step)}

    def tokens(self, values: Mapping[str, float]) -> float:
        """Return the number of tokens in the pairs of a prompt."""
        pairs = 1 if self.rollout is None else self.settings.pairs
        return 2 * pairs * values["train_length"]

    def _make_policy(self, rngs: nnx.Rngs) -> Any:
        model = self._make_model(rngs)
        model.eval()
        return model

    def _make_learner(self, rngs: nnx.Rngs) -> Any:
        policy = self._make_policy(rngs)
        return make_critic(policy, rngs) if self.settings.scores else policy

    def _sample(self, model: Any, prompts: jax.Array, key: jax.Array, samples: int) -> Completions:
        assert self.rollout is not None
        temperature = self.settings.temperature
        return self.rollout.sample(model, prompts, key, samples, temperature=temperature)

    def _pairs(
        self, state: PreferenceState, batch: Any, key: jax.Array, doubt: float | None = None
    ) -> tuple[PreferencePairs, Values]:
        """Return recorded or sampled pairs, and the evidence of their scores."""
        if self.rollout is None:
            return recorded_pairs(batch), {}
        batch = self.rollout.prompts.columns(batch)
        sampling, choice = jax.random.split(key)
        policy = nnx.merge(self._policy_graphdef, *state.drawn_from, copy=True)
        samples = 2 * self.settings.pairs
        found = self._sample(policy, batch["prompt"], sampling, samples)
        rows = repeat_rows(batch, samples)
        sequences = jnp.concatenate([rows["prompt"], found.tokens], axis=1)
        scores = self.rollout.score(rows, found)
        doubt = self.settings.doubt if doubt is None else doubt
        utility = scores.total.reshape(-1, samples)
        evidence = self.rollout.evidence(rows["prompt"], found.tokens, scores, samples)
        return preferred_pairs(sequences, found.mask, utility, doubt, choice), evidence

    def _compare(self, state: PreferenceState, params: Any, pairs: PreferencePairs) -> Values:
        """Return the loss and the metrics of pairs, means per prompt."""
        chosen, rejected = pairs.chosen, pairs.rejected
        if self.settings.scores:
            model = nnx.merge(self._graphdef, params, state.rest, copy=True)
            first, second = (model.score(s, _last(mask)) for s, mask in (chosen, rejected))
            margin = first - second
            losses = bradley_terry(first, second)
        else:
            new, old = (
                [self._log_likelihood(graphdef, variables, c) for c in (chosen, rejected)]
                for graphdef, variables in self._policies(state, params)
            )
            margin = dpo_margin(*new, *old)
            losses = dpo(margin, self.settings.beta)
        # A tie counts one half.
        right = jnp.where(margin == 0, 0.5, (margin > 0).astype(jnp.float32))
        lengths = (chosen[1].sum(1) + rejected[1].sum(1)) / 2
        values = {"loss": losses, "pair_accuracy": right, "margin": margin, "length": lengths}
        values = {k: v.reshape(len(pairs.utility), -1).mean(1) for k, v in values.items()}
        if self.rollout is None:
            return values
        spread = pairs.utility.std(1, ddof=1)
        return values | {"worth": pairs.utility.mean(1), "worth_spread": spread}

    def _policies(self, state: PreferenceState, params: Any) -> list[tuple[Any, Any]]:
        """Return graph definition and variables of the learning policy and of the frozen one."""
        learning = self._graphdef, (params, state.rest)
        return [learning, (self._policy_graphdef, state.drawn_from)]

    def _log_policy(
        self, graphdef: Any, variables: Any, sequences: jax.Array, start: int = 0
    ) -> jax.Array:
        """Return log-probabilities of all tokens after position `start`, (N, L - 1 - start, V)."""
        model = nnx.merge(graphdef, *variables, copy=True)
        logits = model(sequences[:, :-1], start=start)
        return nnx.log_softmax(logits / self.settings.temperature)

    def _log_likelihood(self, graphdef: Any, variables: Any, completions: Tokens) -> jax.Array:
        """Return the log-probability of each completion, in nats, (N,)."""
        sequences, mask = completions
        log_p = self._log_policy(graphdef, variables, sequences)
        return (kl.chosen(log_p, sequences[:, 1:]) * mask[:, 1:]).sum(1)


def _last(mask: jax.Array) -> jax.Array:
    """Return the position of the last token in the mask, (N,)."""
    return jnp.argmax(mask * jnp.arange(mask.shape[1])[None], axis=1).astype(jnp.int32)

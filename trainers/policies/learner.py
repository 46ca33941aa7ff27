"""Updates of a policy and its critic: from experience to new weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from grlu import kl
from grlu.policy_losses import clipped, clipped_value, entropy, ratios, reinforce, token_weights
from input_pipeline.text.prompts import Prompts
from trainers.optimizer import Schedule
from trainers.policies.reference import LogProbs
from trainers.policies.settings import PolicySettings


class Experience(NamedTuple):
    """Completions to learn from; arrays of shape (N, T) unless noted.

    Attributes:
        sequences: prompts and completions, (N, P + T).
        mask: 1 at the completion's tokens.
        sampled: log-probabilities of the tokens in sampling.
        target: the data's own continuation.
        old: log-probabilities of the tokens under the weights before the updates.
        advantages: advantages, 0 outside the mask.
        values: the critic's value of the state before each token.
        value_targets: targets of the critic.
    """

    sequences: jax.Array
    mask: jax.Array
    sampled: jax.Array
    target: jax.Array
    old: jax.Array
    advantages: jax.Array
    values: jax.Array
    value_targets: jax.Array


class Learner:
    """Updates of a policy, and of its critic if it has one; rates are schedules by step.

    Attributes:
        updates: optimizer steps per rollout.
        metrics: names of the values of the first update; `clip_fraction` is the mean over all.
            `mismatch` is the largest difference of log-probabilities in sampling and in training,
            `p_error` the largest deviation of the summed probabilities from 1, `gradient` its norm,
            `kl` in nats per completion.
    """

    def __init__(
        self,
        settings: PolicySettings,
        graphdef: Any,
        critic_graphdef: Any,
        reference: LogProbs | None,
        prompts: Prompts,
        learning_rate: Schedule,
        critic_rate: Schedule,
    ):
        self.settings = settings
        self._graphdef, self._critic_graphdef = graphdef, critic_graphdef
        self._reference, self._prompt = reference, prompts.length
        self.updates = updates = settings.updates * settings.minibatches
        # With one token per completion, all samples of a prompt share one distribution.
        shared = updates == 1 and settings.batch_size % settings.micro_batches == 0
        self._copies = settings.samples if prompts.horizon == 1 and shared else 1

        def transformation(rate: Schedule) -> optax.GradientTransformation:
            # Schedules count steps, each of several updates.
            return settings.transformation(lambda count: rate(count // updates))

        self.optimizer, self.critic_optimizer = map(transformation, (learning_rate, critic_rate))
        self._gae = settings.advantage == "gae"
        optional = (["kl"] if reference else []) + (["value_loss"] if self._gae else [])
        diagnosed = ("ratio", "clip_fraction", "mismatch", "p_error", "gradient", "advantage")
        self.metrics = ("loss", "entropy", *optional, *diagnosed, "advantage_spread")

    def log_policy(
        self, params: Any, rest: Any, sequences: jax.Array, critic: Any = None, copies: int = 1
    ) -> tuple[jax.Array, jax.Array]:
        """Return log-probabilities of all tokens (N, T, V) and values (N, T) before each token.

        Values come from a separate critic if its variables, `critic`, are given. Each `copies`
        consecutive rows of `sequences`, (N, P + T), differ only in the last token, so that one pass
        serves them.
        """
        model = nnx.merge(self._graphdef, params, rest, copy=True)
        seen = sequences[::copies, :-1]
        if self._gae and self._critic_graphdef is None:
            logits, values = model.with_values(seen, start=self._prompt - 1)
        else:
            logits = model(seen, start=self._prompt - 1)
            values = jnp.zeros(logits.shape[:2])
        log_p = nnx.log_softmax(logits / self.settings.temperature)
        if copies > 1:
            log_p, values = (jnp.repeat(a, copies, 0) for a in (log_p, values))
        if critic is not None:
            model = nnx.merge(self._critic_graphdef, *critic, copy=True)
            values = model(sequences[:, :-1])[:, self._prompt - 1 :]
        return log_p, values

    def before_updates(
        self, state: Any, sequences: jax.Array, sampled: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return log-probabilities of the sampled tokens and values, (N, T), before the updates."""
        if not self._gae and self.updates == 1:
            # The only update starts from the sampling policy.
            return sampled, jnp.zeros_like(sampled)

        def score(sequences: jax.Array) -> tuple[jax.Array, jax.Array]:
            policy = state.params, state.rest
            log_p, values = self.log_policy(*policy, sequences, state.critic, self._copies)
            return kl.chosen(log_p, sequences[:, self._prompt :]), values

        return self._in_parts(score, sequences)

    def divergence(self, state: Any, sequences: jax.Array) -> jax.Array:
        """Return the estimated KL divergence from the reference per token, (N, T)."""
        assert self._reference
        reference = self._reference

        def estimate(sequences: jax.Array) -> jax.Array:
            log_p, _ = self.log_policy(state.params, state.rest, sequences)
            log_q = reference(state.reference, sequences, self._prompt)
            return kl.divergence(self.settings.kl, log_p, log_q, sequences[:, self._prompt :])

        return self._in_parts(estimate, sequences)

    def learn(
        self, state: Any, experience: Experience, beta: jax.Array, key: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Return the state after all updates of a step, and the values of `metrics`."""
        settings = self.settings
        count, updates = len(experience.sequences), self.updates
        if updates == 1:
            order = jnp.arange(count)[None]
        else:
            keys = jax.random.split(key, settings.updates)
            order = jax.vmap(lambda k: jax.random.permutation(k, count))(keys)
            order = order.reshape(updates, -1)

        def update(carry: Any, rows: jax.Array) -> Any:
            params, critic, opt, critic_opt = carry
            part = jax.tree.map(lambda a: a[rows], experience)
            trained = (params, None if critic is None else critic[0])
            grads, sums = self._gradient(state, trained, part, beta)
            changes, opt = self.optimizer.update(grads[0], opt, params)
            sums["gradient"] = optax.tree.norm(grads[0])
            params = optax.apply_updates(params, changes)
            if critic is not None:
                changes, critic_opt = self.critic_optimizer.update(grads[1], critic_opt, critic[0])
                critic = (optax.apply_updates(critic[0], changes), *critic[1:])
            return (params, critic, opt, critic_opt), sums

        start = (state.params, state.critic, state.opt_state, state.critic_opt)
        (params, critic, opt, critic_opt), sums = jax.lax.scan(update, start, order)
        measured = {name: values[0] for name, values in sums.items()}
        measured["clip_fraction"] = sums["clip_fraction"].mean()
        weights = token_weights(experience.mask, "token")
        measured["advantage"] = (weights * experience.advantages).sum()
        spread = jnp.square(experience.advantages - measured["advantage"])
        measured["advantage_spread"] = jnp.sqrt((weights * spread).sum())
        state = state.replace(params=params, critic=critic, opt_state=opt, critic_opt=critic_opt)
        return state, measured

    def _gradient(
        self, state: Any, trained: Any, part: Experience, beta: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Return the gradient of a minibatch's loss and its metrics, summed over micro-batches.

        `trained` holds the weights of the policy, and of its separate critic or None.
        """
        weights = token_weights(part.mask, self.settings.aggregation)
        # Metrics and the critic's error are means over tokens under every aggregation.
        micro = part, weights, token_weights(part.mask, "token")

        def loss(trained: Any, micro: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            return self._loss(state, trained, micro, beta)

        gradient = jax.grad(loss, has_aux=True)
        if self.settings.micro_batches == 1:
            return gradient(trained, micro)

        def add(total: Any, micro: Any) -> tuple[Any, None]:
            grads, sums = gradient(trained, micro)
            largest = {k: jnp.maximum(total[1][k], sums[k]) for k in ("mismatch", "p_error")}
            grads, sums = jax.tree.map(jnp.add, total, (grads, sums))
            return (grads, sums | largest), None

        parts = self.settings.micro_batches
        micros = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), micro)
        shapes = jax.eval_shape(gradient, trained, jax.tree.map(lambda a: a[0], micros))
        return jax.lax.scan(add, optax.tree.zeros_like(shapes), micros)[0]

    def _loss(
        self, state: Any, trained: Any, micro: Any, beta: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        part, weights, plain = micro
        params, critic = trained
        settings, tokens = self.settings, part.sequences[:, self._prompt :]
        full = None if critic is None else (critic, *state.critic[1:])
        log_p, values = self.log_policy(params, state.rest, part.sequences, full, self._copies)
        new = kl.chosen(log_p, tokens)
        old = jax.lax.stop_gradient(new) if self.updates == 1 else part.old
        ratio = ratios(new, old, part.mask, settings.ratio)
        if settings.loss == "clip":
            distances = settings.clip_low, settings.clip_high
            losses, is_clipped = clipped(ratio, part.advantages, *distances)
        else:
            losses, is_clipped = reinforce(new, part.advantages), jnp.zeros_like(new, bool)
        entropies = entropy(log_p)
        losses = losses - settings.entropy * entropies
        if settings.partial_logprob:
            losses = losses - settings.partial_logprob * kl.chosen(log_p, part.target)
        sums = {
            "entropy": (plain * entropies).sum(),
            "ratio": (plain * ratio).sum(),
            "clip_fraction": (plain * is_clipped).sum(),
            "mismatch": jnp.abs((new - part.sampled) * part.mask).max(),
            "p_error": jnp.abs(jnp.exp(log_p).sum(-1) - 1).max(),
        }
        if self._reference is not None:
            once = part.sequences[:: self._copies]
            log_q = self._reference(state.reference, once, self._prompt)
            log_q = jnp.repeat(log_q, self._copies, 0)
            if settings.beta_kl and kl.in_loss(settings.kl, settings.kl_in):
                # The penalty is a sum over tokens, so its ratios are always per token.
                importance = None if self.updates == 1 else ratios(new, old, part.mask)
                penalty = kl.divergence(settings.kl, log_p, log_q, tokens, importance)
                losses = losses + beta * penalty
            completions = len(part.mask) * settings.micro_batches
            sums["kl"] = (part.mask * kl.exact(log_p, log_q)).sum() / completions
        total = (weights * losses).sum()
        if self._gae:
            error = clipped_value(values, part.values, part.value_targets, settings.value_clip)
            sums["value_loss"] = (plain * error).sum()
            total = total + settings.value_weight * sums["value_loss"]
        return total, {"loss": total, **sums}

    def _in_parts(self, fn: Any, sequences: jax.Array) -> Any:
        """Map `fn` over all sequences, in parts of the size used in training."""
        parts = self.settings.minibatches * self.settings.micro_batches
        found = jax.lax.map(fn, sequences.reshape(parts, -1, sequences.shape[1]))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)

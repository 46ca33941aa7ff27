"""From what was drawn to new weights: the loss of a policy and its critic, and their updates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from grlu import kl
from grlu.policy_losses import (
    clipped,
    clipped_value,
    entropy,
    ratios,
    reinforce,
    token_weights,
)
from trainers.policy_settings import PolicySettings
from trainers.references import LogProbs
from trainers.schedules import Schedule


class Drawn(NamedTuple):
    """Completions and what they are to teach; arrays of shape (N, T) but for the sequences.

    Attributes:
        sequences: prompts and completions, (N, P + T).
        mask: 1 at the completion's tokens.
        sampled: the sampler's log-probabilities.
        target: the data's own continuation.
        old: log-probabilities by the weights of before the updates.
        advantages: 0 outside the mask.
        values: the critic's, of the state before each token.
        value_targets: what it is to learn.
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
    """The updates of a policy, and of its critic if it has one.

    Attributes:
        updates: optimizer steps a rollout.
        metrics: names of what is measured in the first update, before the weights move, but for
            `clip_fraction`, the mean over all updates. `mismatch` is the largest difference between
            the log-probabilities in sampling and in training, `p_error` that between 1 and the sum
            of the probabilities, `gradient` a norm, `kl` in nats a completion.
    """

    def __init__(
        self,
        settings: PolicySettings,
        graphdef: Any,
        critic_graphdef: Any,
        reference: LogProbs | None,
        prompt: int,
        horizon: int,
        learning_rate: Schedule,
        critic_rate: Schedule,
    ):
        self.settings = settings
        self._graphdef, self._critic_graphdef = graphdef, critic_graphdef
        self._reference, self._prompt = reference, prompt
        self.updates = updates = settings.updates * settings.minibatches
        # Of one token, all samples of a prompt are foretold by the same distribution.
        together = updates == 1 and settings.batch_size % settings.micro_batches == 0
        self._copies = settings.samples if horizon == 1 and together else 1

        def transformation(rate: Schedule) -> optax.GradientTransformation:
            # Schedules move by the step, which is several updates.
            return settings.transformation(lambda count: rate(count // updates))

        self.optimizer = transformation(learning_rate)
        self.critic_optimizer = transformation(critic_rate)
        self._gae = settings.advantage == "gae"
        self.metrics = (
            "loss",
            "entropy",
            *(["kl"] if reference else []),
            *(["value_loss"] if self._gae else []),
            "ratio",
            "clip_fraction",
            "mismatch",
            "p_error",
            "gradient",
            "advantage",
            "advantage_spread",
        )

    def log_policy(
        self,
        params: Any,
        rest: Any,
        sequences: jax.Array,
        copies: int = 1,
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities of all tokens (N, T, V), and values (N, T), before each token.

        The last token of the prompt gives those of the first of the completion. `copies` is how
        often each row comes, one after the other, but for its last token.
        """
        model = nnx.merge(self._graphdef, params, rest, copy=True)
        seen = sequences[::copies, :-1]
        if self._gae and self._critic_graphdef is None:
            logits, values = model.with_values(seen, start=self._prompt - 1)
        else:
            logits = model(seen, start=self._prompt - 1)
            values = jnp.zeros(logits.shape[:2])
        log_p = nnx.log_softmax(logits / self.settings.temperature)
        if copies == 1:
            return log_p, values
        return jnp.repeat(log_p, copies, 0), jnp.repeat(values, copies, 0)

    def scored(
        self, state: Any, sequences: jax.Array, sampled: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Log-probabilities of what was drawn, and values, (N, T), of before the updates."""
        if not self._gae and self.updates == 1:
            return sampled, jnp.zeros_like(sampled)  # The first update's own are the old ones.

        def score(sequences: jax.Array) -> tuple[jax.Array, jax.Array]:
            log_p, values = self._values(state.params, state.rest, state.critic, sequences)
            return kl.chosen(log_p, sequences[:, self._prompt :]), values

        return self._in_parts(score, sequences)

    def divergence(self, state: Any, sequences: jax.Array) -> jax.Array:
        """The estimate of the divergence from the reference, per token, for the reward."""
        assert self._reference
        reference = self._reference

        def estimate(sequences: jax.Array) -> jax.Array:
            log_p, _ = self.log_policy(state.params, state.rest, sequences)
            log_q = reference(state.reference, sequences, self._prompt)
            return kl.divergence(self.settings.kl, log_p, log_q, sequences[:, self._prompt :])

        return self._in_parts(estimate, sequences)

    def learn(
        self, state: Any, drawn: Drawn, beta: jax.Array, key: jax.Array
    ) -> tuple[Any, Any, Any, Any, dict[str, jax.Array]]:
        """All updates of a step: weights, critic, their optimizers' states, and measures."""
        settings = self.settings
        count, updates = len(drawn.sequences), self.updates
        if updates == 1:
            order = jnp.arange(count)[None]
        else:
            keys = jax.random.split(key, settings.updates)
            order = jax.vmap(lambda k: jax.random.permutation(k, count))(keys)
            order = order.reshape(updates, -1)

        def update(carry: Any, rows: jax.Array) -> Any:
            params, critic, opt, critic_opt = carry
            part = jax.tree.map(lambda a: a[rows], drawn)
            trained = (params, None if critic is None else critic[0])
            grads, sums = self._gradient(state, trained, critic, part, beta)
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
        every = token_weights(drawn.mask, "token")
        measured["advantage"] = (every * drawn.advantages).sum()
        spread = jnp.square(drawn.advantages - measured["advantage"])
        measured["advantage_spread"] = jnp.sqrt((every * spread).sum())
        return params, critic, opt, critic_opt, measured

    def _gradient(
        self, state: Any, trained: Any, critic: Any, part: Drawn, beta: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """The gradient of a minibatch's loss, summed over its micro-batches."""
        weights = token_weights(part.mask, self.settings.aggregation)
        # The critic's error and what is measured are means over tokens, whatever the policy's.
        plain = token_weights(part.mask, "token")
        rest = () if critic is None else critic[1:]

        def loss(
            trained: Any, micro: tuple[Drawn, jax.Array, jax.Array]
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            params, own = trained
            full = None if own is None else (own, *rest)
            drawn, weights, plain = micro
            return self._loss(state, params, full, drawn, weights, plain, beta)

        gradient = jax.grad(loss, has_aux=True)
        if self.settings.micro_batches == 1:
            return gradient(trained, (part, weights, plain))

        def add(total: Any, micro: Any) -> tuple[Any, None]:
            grads, sums = gradient(trained, micro)
            largest = {k: jnp.maximum(total[1][k], sums[k]) for k in ("mismatch", "p_error")}
            grads, sums = jax.tree.map(jnp.add, total, (grads, sums))
            return (grads, sums | largest), None

        micros = self._parted((part, weights, plain))
        shapes = jax.eval_shape(gradient, trained, jax.tree.map(lambda a: a[0], micros))
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, start, micros)[0]

    def _loss(
        self,
        state: Any,
        params: Any,
        critic: Any,
        part: Drawn,
        weights: jax.Array,
        plain: jax.Array,
        beta: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        settings, tokens = self.settings, part.sequences[:, self._prompt :]
        log_p, values = self._values(params, state.rest, critic, part.sequences)
        new = kl.chosen(log_p, tokens)
        old = jax.lax.stop_gradient(new) if self.updates == 1 else part.old
        ratio = ratios(new, old, part.mask, settings.ratio)
        if settings.loss == "clip":
            each, held = clipped(ratio, part.advantages, settings.clip_low, settings.clip_high)
        else:
            each, held = reinforce(new, part.advantages), jnp.zeros_like(new, bool)
        entropies = entropy(log_p)
        each = each - settings.entropy * entropies
        if settings.partial_logprob:
            each = each - settings.partial_logprob * kl.chosen(log_p, part.target)
        sums = {
            "entropy": (plain * entropies).sum(),
            "ratio": (plain * ratio).sum(),
            "clip_fraction": (plain * held).sum(),
            "mismatch": jnp.abs((new - part.sampled) * part.mask).max(),
            "p_error": jnp.abs(jnp.exp(log_p).sum(-1) - 1).max(),
        }
        if self._reference is not None:
            once = part.sequences[:: self._copies]
            log_q = self._reference(state.reference, once, self._prompt)
            log_q = jnp.repeat(log_q, self._copies, 0)
            if settings.beta_kl and kl.in_loss(settings.kl, settings.kl_in):
                # One ratio per token, whatever the level of the policy loss: the penalty is a sum
                # over tokens.
                importance = None if self.updates == 1 else ratios(new, old, part.mask)
                penalty = kl.divergence(settings.kl, log_p, log_q, tokens, importance)
                each = each + beta * penalty
            completions = len(part.mask) * settings.micro_batches
            sums["kl"] = (part.mask * kl.exact(log_p, log_q)).sum() / completions
        total = (weights * each).sum()
        if self._gae:
            error = clipped_value(values, part.values, part.value_targets, settings.value_clip)
            sums["value_loss"] = (plain * error).sum()
            total = total + settings.value_weight * sums["value_loss"]
        return total, {"loss": total, **sums}

    def _values(
        self, params: Any, rest: Any, critic: Any, sequences: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        log_p, values = self.log_policy(params, rest, sequences, copies=self._copies)
        if critic is not None:
            model = nnx.merge(self._critic_graphdef, *critic, copy=True)
            values = model(sequences[:, :-1])[:, self._prompt - 1 :]
        return log_p, values

    def _parted(self, tree: Any) -> Any:
        parts = self.settings.micro_batches
        return jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), tree)

    def _in_parts(self, fn: Any, sequences: jax.Array) -> Any:
        """`fn` of all sequences, as many at once as in training."""
        parts = self.settings.minibatches * self.settings.micro_batches
        found = jax.lax.map(fn, sequences.reshape(parts, -1, sequences.shape[1]))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)

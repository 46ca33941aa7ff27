"""Learning from preferences: a reward model (Bradley-Terry), or a policy without one (DPO).

A step samples pairs of completions of each prompt from a frozen copy of the run's initial policy.
The completion with the higher `utility` is preferred, and the model learns to predict this
preference. Alternatively, the pairs come from a data set of recorded preferences
(`dataset.name=preferences:PATH`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from grlu import kl
from grlu.preferences import bradley_terry, dpo, dpo_margin
from input_pipeline.text.prompts import Prompts
from trainers.completions.evaluation import examples, key_from
from trainers.completions.rewards import Judge
from trainers.completions.rollout import Rollout
from trainers.completions.scoring import rewards_from
from trainers.loop.state import TrainState
from trainers.loop.trainer import Values
from trainers.policies.base import CompletionTrainer, Critic, variables
from trainers.policies.settings import PreferenceSettings

Tokens = tuple[jax.Array, jax.Array]
"""Token numbers (N, L), and a mask (N, L), 1 at the tokens of the completion."""


class PreferencePairs(NamedTuple):
    """N preference pairs of B prompts.

    Attributes:
        chosen: the preferred completions, with their prompts.
        rejected: the other completions, with their prompts.
        utility: utility of the completions of each prompt, (B, 2N / B); (B, 0) for recorded pairs.
    """

    chosen: Tokens
    rejected: Tokens
    utility: jax.Array


class PreferenceState(TrainState):
    """State of a run that learns from preferences.

    Attributes:
        drawn_from: parameters and other variables of the frozen policy that samples the pairs.
    """

    drawn_from: Any

    @property
    def begins(self) -> Any:
        return self.drawn_from[0]

    def begun_from(self, other: TrainState) -> "PreferenceState":
        """Return this state with another run's policy, to sample from and to start with."""
        params, policy = (jax.tree.map(jnp.copy, other.params) for _ in range(2))
        if "body" in self.params:  # A reward model's features.
            params = nnx.merge_state(self.params, nnx.State({"body": params}))
        return self.replace(params=params, drawn_from=(policy, self.drawn_from[1]))


class PreferenceTrainer(CompletionTrainer):
    """Pure functions of a run that learns from preferences: `init`, `step`, `evaluate`.

    Attributes:
        metrics: names of the values of `step`, per prompt. `pair_accuracy` is the fraction of pairs
            in which the model prefers the chosen completion, `margin` by how much. Sampled pairs
            add `worth`, the utility of the frozen policy's completions, and `worth_spread`, its
            standard deviation within a prompt.
        evaluated: names of the values of `evaluate`. DPO on sampled pairs adds `utility`, that of
            the policy's own completions minus that of the frozen policy's, and `kl`, the divergence
            between the two policies in nats per completion.
    """

    settings: PreferenceSettings

    def __init__(
        self,
        settings: PreferenceSettings,
        make_model: Callable[[nnx.Rngs], Any],
        steps_per_epoch: int,
        data: Any,
    ):
        self.settings, self._make_model = settings, make_model
        policy, learner = nnx.eval_shape(lambda: self._make_models(0))
        self._policy_graphdef, self._graphdef = nnx.graphdef(policy), nnx.graphdef(learner)
        self.learning_rate = settings.rate(steps_per_epoch)
        self.optimizer = settings.transformation(self.learning_rate)
        self.rollout: Rollout | None = None
        self.metrics: tuple[str, ...] = ("loss", "pair_accuracy", "margin", "length")
        if not data.pairs:
            options = settings.prompt, settings.horizon, settings.end
            block = policy.block if settings.scores else None
            prompts = Prompts.from_data(data, *options, block=block)
            prompts.require_room(policy.block, scored=settings.scores)
            utility = rewards_from(settings.utility, settings.utility_weights)
            self.rollout = Rollout(prompts, utility, 0.0, settings.temperature)
            self.evidence = self.rollout.evidence_shapes(settings.batch_size, 2 * settings.pairs)
            self.metrics += ("worth", "worth_spread")
        self._samples_itself = not (settings.scores or data.pairs)
        self.evaluated = self.metrics + (("utility", "kl") if self._samples_itself else ())
        better = "utility" if self._samples_itself else "pair_accuracy"
        self.better: tuple[str, Literal["min", "max"]] = (better, "max")

    def init(self, key: jax.Array) -> PreferenceState:
        init_key, run_key = jax.random.split(key)
        policy, learner = self._make_models(init_key)
        params, rest = variables(learner)
        return PreferenceState(
            step=jnp.zeros((), jnp.int32),
            key=run_key,
            params=params,
            rest=rest,
            opt_state=self.optimizer.init(params),
            average=None,
            drawn_from=variables(policy),
        )

    def step(self, state: PreferenceState, batch: Any) -> tuple[PreferenceState, Values]:
        """Take one step; the values, per prompt, precede the update."""
        key = jax.random.fold_in(state.key, state.step)
        pairs, evidence = self._pairs(state, batch, key, self.settings.doubt)

        def loss(params: Any) -> tuple[jax.Array, Values]:
            values = self._compare(state, params, pairs)
            return values["loss"].mean(), values

        grads, values = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return state, values | evidence

    def evaluate(self, state: PreferenceState, batch: Any) -> Values:
        """Return deterministic values per prompt, with `doubt` 0 in the preferences."""
        key: Any = None if self.rollout is None else key_from(batch["tokens"])
        pairs, _ = self._pairs(state, batch, key, doubt=0.0)
        values = self._compare(state, state.params, pairs)
        if self.rollout is None or not self._samples_itself:
            return values
        found = self.rollout.run(self.model(state), batch, key)
        start = self.rollout.prompts.length - 1
        policies = self._policies(state, state.params)
        log_p, log_q = (self._log_policy(model, found.sequences, start) for model in policies)
        return values | {
            "utility": found.rewards["reward"] - values["worth"],
            "kl": (kl.exact(log_p, log_q) * found.mask).sum(1),
        }

    def examples(self, state: PreferenceState, batch: Any) -> list[dict[str, Any]]:
        """Return a policy's completion of each prompt of a batch; a reward model has none."""
        if self.rollout is None or self.settings.scores:
            return []
        temperature = self.settings.temperature
        return examples(self.rollout, temperature, self.model(state), state.key, batch)

    def diagnose(self, values: Mapping[str, float]) -> list[tuple[bool, str]]:
        if "worth_spread" not in values:
            return []
        spread = values["worth_spread"]
        found = f"the utility of a prompt's completions has standard deviation {spread:.2g}"
        same = f"{found}: no signal; is it the same for every completion?"
        return [(spread > 0, found if spread > 0 else same)]

    def judge(self, state: TrainState) -> Judge:
        """Return the trained reward model, to score the completions of a policy."""
        return Judge((state.params, state.rest), self._graphdef)

    def tokens(self, values: Mapping[str, float]) -> float:
        """Return the number of tokens in the pairs of a prompt."""
        pairs = 1 if self.rollout is None else self.settings.pairs
        return 2 * pairs * values["train_length"]

    def _make_models(self, key: Any) -> tuple[Any, Any]:
        """Return the policy and the model that learns: the policy, or a critic on its features."""
        rngs = nnx.Rngs(key)
        policy, learner = self._make_model(nnx.Rngs(key)), self._make_model(rngs)
        if self.settings.scores:
            learner = Critic(learner, rngs)
        policy.eval()
        learner.eval()
        return policy, learner

    def _pairs(
        self, state: PreferenceState, batch: Any, key: Any, doubt: float
    ) -> tuple[PreferencePairs, Values]:
        """Return recorded or sampled pairs, and the evidence of their scores."""
        if self.rollout is None:
            chosen, rejected = ((batch[n], batch[f"{n}_mask"]) for n in ("chosen", "rejected"))
            return PreferencePairs(chosen, rejected, jnp.zeros((len(chosen[0]), 0))), {}
        sampling, choice = jax.random.split(key)
        policy = nnx.merge(self._policy_graphdef, *state.drawn_from, copy=True)
        samples = 2 * self.settings.pairs
        found = self.rollout.run(policy, batch, sampling, samples)
        utility = found.rewards["reward"].reshape(-1, samples)
        pairs = preferred_pairs(found.sequences, found.mask, utility, doubt, choice)
        return pairs, found.evidence

    def _compare(self, state: PreferenceState, params: Any, pairs: PreferencePairs) -> Values:
        """Return the loss and the metrics of pairs, means per prompt."""
        chosen, rejected = pairs.chosen, pairs.rejected
        learning, frozen = self._policies(state, params)
        if self.settings.scores:
            first, second = (learning.score(s, _last(mask)) for s, mask in (chosen, rejected))
            margin = first - second
            losses = bradley_terry(first, second)
        else:
            new, old = (
                [self._log_likelihood(model, c) for c in (chosen, rejected)]
                for model in (learning, frozen)
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

    def _policies(self, state: PreferenceState, params: Any) -> tuple[Any, Any]:
        """Return the learning model and the frozen policy."""
        learning = nnx.merge(self._graphdef, params, state.rest, copy=True)
        return learning, nnx.merge(self._policy_graphdef, *state.drawn_from, copy=True)

    def _log_policy(self, model: Any, sequences: jax.Array, start: int = 0) -> jax.Array:
        """Return log-probabilities of all tokens after position `start`, (N, L - 1 - start, V)."""
        return nnx.log_softmax(model(sequences[:, :-1], start=start) / self.settings.temperature)

    def _log_likelihood(self, model: Any, completions: Tokens) -> jax.Array:
        """Return the log-probability of each completion, in nats, (N,)."""
        sequences, mask = completions
        log_p = self._log_policy(model, sequences)
        return (kl.chosen(log_p, sequences[:, 1:]) * mask[:, 1:]).sum(1)


def preferred_pairs(
    sequences: jax.Array, mask: jax.Array, utility: jax.Array, doubt: float, key: jax.Array
) -> PreferencePairs:
    """Pair neighbouring completions; choose the one of higher utility, or sample by `doubt`.

    Args:
        sequences: prompts and completions, (2N, P + T); those of each prompt are adjacent.
        mask: 1 at the tokens of the completions, (2N, T).
        utility: utility of the completions of each prompt, (B, 2N / B).
        doubt: temperature of the preference, as in `PreferenceSettings`.
        key: PRNG key of the choice.
    """
    pairs = utility.reshape(-1, 2)
    lead = pairs[:, 0] - pairs[:, 1]
    first = lead >= 0
    if doubt:
        first = lead + doubt * jax.random.logistic(key, lead.shape) >= 0
    order = jnp.where(first[:, None], jnp.array([[0, 1]]), jnp.array([[1, 0]]))
    rows = 2 * jnp.arange(len(order))[:, None] + order
    prompt = sequences.shape[1] - mask.shape[1]
    masks = jnp.pad(mask.astype(jnp.float32), ((0, 0), (prompt, 0)))
    chosen, rejected = ((sequences[i], masks[i]) for i in (rows[:, 0], rows[:, 1]))
    return PreferencePairs(chosen, rejected, utility)


def _last(mask: jax.Array) -> jax.Array:
    """Return the position of the last token in the mask, (N,)."""
    return jnp.argmax(mask * jnp.arange(mask.shape[1])[None], axis=1).astype(jnp.int32)

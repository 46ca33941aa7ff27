"""Learning from preferences: a reward model (Bradley-Terry), or a policy without one (DPO).

A step draws two completions of each prompt from a frozen policy, the one with whose weights the run
begins; a judge who knows the `utility` prefers one; and the model learns which.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from grlu import kl
from grlu.preferences import bradley_terry, dpo, dpo_margin
from trainers.completion_rewards import Reward, rewards_of
from trainers.critic import Critic, critic_of
from trainers.optimizing import OptimizerSettings
from trainers.policy_data import Prompts
from trainers.protocol import TrainerLike
from trainers.sampling import Completions, log_probs, sample
from trainers.schedules import require
from trainers.state import TrainState

Values = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSettings(OptimizerSettings):
    """The `trainer` section of a model that learns from preferences.

    Attributes:
        prompt: tokens of a prompt; by default the data set's.
        horizon: most tokens of a completion; by default the rest of an example.
        end: the text of the token that ends a completion, or None.
        temperature: at which pairs are drawn.
        utility: rewards (`trainers.COMPLETION_REWARDS`, ...) by whose sum the judge prefers.
        utility_weights: of each; by default 1.
        doubt: the judge prefers the one with more utility, by d, with the probability
            sigmoid(d / doubt); with 0 always.
        beta: of DPO: what a nat of divergence costs, in units of the implied reward.
    """

    prompt: int | None = None
    horizon: int | None = None
    end: str | None = None
    temperature: float = 1.0
    utility: tuple[str, ...] = ("taste",)
    utility_weights: tuple[float, ...] | None = None
    doubt: float = 0.0
    beta: float = 0.1

    scores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require("trainer.temperature", self.temperature, 1e-6)
        require("trainer.doubt", self.doubt, 0)
        require("trainer.beta", self.beta, 0)
        rewards_of(self.utility, self.utility_weights)

    def prepare(self, model: Any, outputs: int) -> Any:
        """A new model, as it is."""
        return model

    def build(self, make_model: Callable[[Any], Any], steps_per_epoch: int, data: Any) -> Any:
        """The trainer of a model, for data of so many steps an epoch."""
        return PairTrainer(self, make_model, steps_per_epoch, data)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardModel(PairSettings):
    """Reward model: scores completions so as to foretell a judge's preferences."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPO(PairSettings):
    """Direct preference optimisation: a policy learns from a judge's preferences."""

    learning_rate: float = 1e-4
    scores: ClassVar[bool] = False


class PairState(TrainState):
    """The state of such a run.

    Attributes:
        drawn_from: variables of the frozen policy, trained once and other.
    """

    drawn_from: Any

    @property
    def begins(self) -> Any:
        return self.drawn_from[0]

    def begun_from(self, other: TrainState) -> "PairState":
        """This state with another run's policy, to draw from and to begin with."""
        policy = jax.tree.map(jnp.copy, other.params)
        params = jax.tree.map(jnp.copy, policy)
        if "body" in self.params:  # A reward model's features.
            params = nnx.merge_state(self.params, nnx.State({"body": params}))
        return self.replace(params=params, drawn_from=(policy, self.drawn_from[1]))


class PairTrainer(TrainerLike):
    """Pure functions of a run: `init`, `step`, `evaluate`.

    Attributes:
        metrics: names of the values that `step` gives per prompt: `pair_accuracy` is how often the
            model prefers what the judge does, `margin` by how much.
        evaluated: names of those that `evaluate` gives; of DPO also the `utility` of the policy's
            own completions, less that of the frozen policy's, and their divergence, in nats.
        better: the metric that chooses checkpoints, and its direction.
        block: updates that are taken at once: 1.
        tiny: whether a step is operations of a microsecond each.
    """

    block = 1
    tiny = False

    def __init__(
        self,
        settings: PairSettings,
        make_model: Callable[[nnx.Rngs], Any],
        steps_per_epoch: int,
        data: Any,
    ):
        self.settings = settings
        self.prompts = Prompts.of(data, settings.prompt, settings.horizon, settings.end)
        self.utility = rewards_of(settings.utility, settings.utility_weights)
        self.learning_rate = settings.rate(steps_per_epoch)
        self.optimizer = settings.transformation(self.learning_rate)
        self._make_model = make_model
        self.metrics = ("loss", "pair_accuracy", "margin", "length")
        self.evaluated = self.metrics + (() if settings.scores else ("utility", "kl"))
        self.better: tuple[str, Literal["min", "max"]] = ("pair_accuracy", "max")
        if not settings.scores:
            self.better = ("utility", "max")
        made = nnx.eval_shape(lambda: (self._policy(nnx.Rngs(0)), self._learner(nnx.Rngs(0))))
        self._policy_graphdef, self._graphdef = (nnx.graphdef(m) for m in made)

    def init(self, key: jax.Array) -> PairState:
        """The state before the first step; the model is drawn from `key`."""
        init_key, run_key = jax.random.split(key)
        _, *drawn_from = nnx.split(self._policy(nnx.Rngs(init_key)), nnx.Param, ...)
        _, params, rest = nnx.split(self._learner(nnx.Rngs(init_key)), nnx.Param, ...)  # type: ignore[misc]
        return PairState(
            step=jnp.zeros((), jnp.int32),
            key=run_key,
            params=params,
            rest=rest,
            opt_state=self.optimizer.init(params),
            average=None,
            drawn_from=tuple(drawn_from),
        )

    def step(self, state: PairState, batch: Any) -> tuple[PairState, Values]:
        """One update; the values, per prompt, are those of the state before it."""
        key = jax.random.fold_in(state.key, state.step)
        pairs = self._pairs(state, self.prompts.columns(batch), key)

        def loss(params: Any) -> tuple[jax.Array, Values]:
            values = self._compared(state, params, pairs)
            return values["loss"].mean(), values

        grads, values = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), values

    def evaluate(self, state: PairState, batch: Any) -> Values:
        """Values per prompt, deterministic; the judge has no doubts."""
        batch, key = self.prompts.columns(batch), jax.random.key(0)
        pairs = self._pairs(state, batch, key, doubt=0.0)
        values = self._compared(state, state.params, pairs)
        if self.settings.scores:
            return values
        found = self._sampled(self.model(state), batch["prompt"], key, 1)
        sequences = jnp.concatenate([batch["prompt"], found.tokens], axis=1)
        log_p = self._log_policy(self._graphdef, (state.params, state.rest), sequences)
        log_q = self._log_policy(self._policy_graphdef, state.drawn_from, sequences)
        before = (pairs[2] + pairs[3]) / 2
        return values | {
            "utility": self._worth(batch, found) - before,
            "kl": (kl.exact(log_p, log_q) * found.mask).sum(1),
        }

    def model(self, state: PairState) -> Any:
        """The model, in evaluation mode: a reward model's has a `score`."""
        return nnx.merge(self._graphdef, state.params, state.rest, copy=True)

    def judge(self, state: TrainState | None) -> Reward:
        """What a reward model pays for completions: its score; None: of a model not yet trained."""
        variables = None if state is None else (state.params, state.rest)

        def score(
            prompts: jax.Array, completions: jax.Array, *, mask: jax.Array, **columns: Any
        ) -> jax.Array:
            if variables is None:
                return jnp.zeros(len(prompts))
            model = nnx.merge(self._graphdef, *variables, copy=True)
            last = prompts.shape[1] - 1 + mask.sum(1).astype(jnp.int32)
            return model.score(jnp.concatenate([prompts, completions], axis=1), last)

        return score

    def encode(self, state: PairState, batch: Any) -> jax.Array:
        """Features of each token of the prompts."""
        model = self.model(state)
        body = model.body if isinstance(model, Critic) else model
        return body.encode(self.prompts.columns(batch)["prompt"])

    def scales(self, step: jax.Array) -> Values:
        """What the schedules say at a step, for the log."""
        return {"learning_rate": self.learning_rate(step)}

    def _policy(self, rngs: nnx.Rngs) -> Any:
        model = self._make_model(rngs)
        model.eval()
        return model

    def _learner(self, rngs: nnx.Rngs) -> Any:
        policy = self._policy(rngs)
        if not self.settings.scores:
            return policy
        return critic_of(policy, self.prompts.length, rngs)

    def _sampled(self, model: Any, prompts: jax.Array, key: jax.Array, samples: int) -> Completions:
        return sample(
            model,
            prompts,
            steps=self.prompts.horizon,
            key=key,
            samples=samples,
            temperature=self.settings.temperature,
            end_token=self.prompts.end_token,
        )

    def _worth(self, rows: Any, found: Completions) -> jax.Array:
        columns = {k: v for k, v in rows.items() if k != "prompt"}
        mask = found.mask.astype(jnp.float32)
        paid = self.utility(rows["prompt"], found.tokens, mask=mask, wrong=0.0, **columns)
        return paid.whole + paid.each.sum(1)

    def _pairs(
        self, state: PairState, batch: Any, key: jax.Array, doubt: float | None = None
    ) -> Any:
        """What the judge prefers and what not, (sequences, mask) each, and their utilities."""
        doubt = self.settings.doubt if doubt is None else doubt
        draw, judge = jax.random.split(key)
        policy = nnx.merge(self._policy_graphdef, *state.drawn_from, copy=True)
        found = self._sampled(policy, batch["prompt"], draw, 2)
        rows = jax.tree.map(lambda a: jnp.repeat(a, 2, axis=0), batch)
        sequences = jnp.concatenate([rows["prompt"], found.tokens], axis=1)
        worth = self._worth(rows, found).reshape(-1, 2)
        lead = worth[:, 0] - worth[:, 1]
        certain = lead >= 0
        if doubt:
            noise = jax.random.logistic(judge, lead.shape)
            certain = lead + doubt * noise >= 0
        order = jnp.where(certain[:, None], jnp.array([[0, 1]]), jnp.array([[1, 0]]))
        at = 2 * jnp.arange(len(order))[:, None] + order
        better, worse = (
            (sequences[rows], found.mask[rows].astype(jnp.float32)) for rows in (at[:, 0], at[:, 1])
        )
        return better, worse, worth[:, 0], worth[:, 1]

    def _compared(self, state: PairState, params: Any, pairs: Any) -> Values:
        better, worse = pairs[:2]
        if self.settings.scores:
            model = nnx.merge(self._graphdef, params, state.rest, copy=True)
            first, second = (
                model.score(s, (self.prompts.length - 1 + mask.sum(1)).astype(jnp.int32))
                for s, mask in (better, worse)
            )
            margin = first - second
            losses = bradley_terry(first, second)
        else:
            new = [
                self._log_likelihood(self._graphdef, (params, state.rest), *p) for p in pairs[:2]
            ]
            old = [
                self._log_likelihood(self._policy_graphdef, state.drawn_from, *p) for p in pairs[:2]
            ]
            margin = dpo_margin(*new, *old)
            losses = dpo(margin, self.settings.beta)
        # A tie is half right.
        right = jnp.where(margin == 0, 0.5, (margin > 0).astype(jnp.float32))
        lengths = (better[1].sum(1) + worse[1].sum(1)) / 2
        return {"loss": losses, "pair_accuracy": right, "margin": margin, "length": lengths}

    def _log_policy(self, graphdef: Any, variables: Any, sequences: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, *variables, copy=True)
        logits = model(sequences[:, :-1])[:, self.prompts.length - 1 :]
        return nnx.log_softmax(logits / self.settings.temperature)

    def _log_likelihood(
        self, graphdef: Any, variables: Any, sequences: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """Log-probability of whole completions, (N,)."""
        log_p = self._log_policy(graphdef, variables, sequences)
        return (log_probs(log_p, sequences[:, self.prompts.length :]) * mask).sum(1)

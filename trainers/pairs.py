"""Learning from preferences: a reward model (Bradley-Terry), or a policy without one (DPO).

A step draws two completions of each prompt from a frozen policy, the one with whose weights the run
begins; a judge who knows the `utility` prefers one; and the model learns which. Or else the pairs
are those of a data set of preferences (`dataset.name=preferences:PATH`), recorded once and for all.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from grlu import kl
from grlu.preferences import bradley_terry, dpo, dpo_margin
from trainers.completing import Completing, repeated
from trainers.completion_rewards import Reward, rewards_of
from trainers.critic import critic_of
from trainers.pair_settings import PairSettings
from trainers.policy_data import Prompts
from trainers.policy_evaluation import key_of, written
from trainers.protocol import TrainerLike
from trainers.sampling import Completions
from trainers.state import TrainState

Values = dict[str, jax.Array]


class PairState(TrainState):
    """The state of such a run.

    Attributes:
        drawn_from: variables of the frozen policy, trained once and other.
        fault: the first utility that was not finite, as `Completing.first_fault` tells it, or None
            of recorded pairs.
    """

    drawn_from: Any
    fault: Any

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


class Pairs(NamedTuple):
    """N pairs: what is preferred and what not, each tokens (N, L) and which of them count, (N, L).

    Attributes:
        better: what is preferred.
        worse: what is not.
        worth: the utility of each prompt's completions, (B, 2N / B); of recorded ones none.
        fault: the first utility of the run, or of these, that was not finite; of recorded ones
            None.
    """

    better: tuple[jax.Array, jax.Array]
    worse: tuple[jax.Array, jax.Array]
    worth: jax.Array
    fault: jax.Array | None = None


class PairTrainer(TrainerLike):
    """Pure functions of a run: `init`, `step`, `evaluate`.

    Attributes:
        metrics: names of the values that `step` gives per prompt: `pair_accuracy` is how often the
            model prefers what the judge does, `margin` by how much; where pairs are drawn, `worth`
            is the utility of the frozen policy's completions and `worth_spread` its standard
            deviation among those of a prompt.
        evaluated: names of those that `evaluate` gives; of DPO also the `utility` of the policy's
            own completions, less that of the frozen policy's, and their divergence, in nats: but
            not where pairs are recorded, of whose judge nothing is known.
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
        self._make_model = make_model
        made = nnx.eval_shape(lambda: (self._policy(nnx.Rngs(0)), self._learner(nnx.Rngs(0))))
        self.prompts = self.asked = None
        if not data.pairs:
            asked = data, settings.prompt, settings.horizon, settings.end
            self.prompts = Prompts.of(*asked, block=made[0].block if settings.scores else None)
            utility = rewards_of(settings.utility, settings.utility_weights)
            self.asked = Completing(self.prompts, utility, names=(), wrong=0.0)
        self.learning_rate = settings.rate(steps_per_epoch)
        self.optimizer = settings.transformation(self.learning_rate)
        self.metrics: tuple[str, ...] = ("loss", "pair_accuracy", "margin", "length")
        self.metrics += () if data.pairs else ("worth", "worth_spread")
        self._of_policy = not (settings.scores or data.pairs)
        self.evaluated = self.metrics + (("utility", "kl") if self._of_policy else ())
        self.better: tuple[str, Literal["min", "max"]] = ("pair_accuracy", "max")
        if self._of_policy:
            self.better = ("utility", "max")
        if self.prompts is not None:
            self.prompts.require_room(made[0].block, scored=settings.scores)
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
            fault=None if self.asked is None else self.asked.no_fault(),
        )

    def step(self, state: PairState, batch: Any) -> tuple[PairState, Values]:
        """One update; the values, per prompt, are those of the state before it."""
        key = jax.random.fold_in(state.key, state.step)
        pairs = self._pairs(state, batch, key)

        def loss(params: Any) -> tuple[jax.Array, Values]:
            values = self._compared(state, params, pairs)
            return values["loss"].mean(), values

        grads, values = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        state = state.replace(
            step=state.step + 1, params=params, opt_state=opt_state, fault=pairs.fault
        )
        return state, values

    def evaluate(self, state: PairState, batch: Any) -> Values:
        """Values per prompt, deterministic; the judge has no doubts."""
        # Recorded pairs draw nothing.
        key = jax.random.key(0) if self.prompts is None else key_of(batch["tokens"])
        pairs = self._pairs(state, batch, key, doubt=0.0)
        values = self._compared(state, state.params, pairs)
        if self.prompts is None or self.asked is None or not self._of_policy:
            return values
        batch = self.prompts.columns(batch)
        found = self._sampled(self.model(state), batch["prompt"], key, 1)
        sequences = jnp.concatenate([batch["prompt"], found.tokens], axis=1)
        log_p, log_q = (
            self._log_policy(graphdef, variables, sequences, self.prompts.length - 1)
            for graphdef, variables in self._both(state, state.params)
        )
        return values | {
            "utility": self.asked.paid(batch, found).total - values["worth"],
            "kl": (kl.exact(log_p, log_q) * found.mask).sum(1),
        }

    def examples(self, state: PairState, batch: Any) -> list[dict[str, Any]]:
        """What a policy writes after the prompts of a batch, for a person."""
        if self.asked is None or self.settings.scores:
            return []
        model, temperature = self.model(state), self.settings.temperature
        return written(self.asked, temperature, model, state.key, batch)

    def diagnose(self, values: Mapping[str, float]) -> list[tuple[bool, str]]:
        """Whether there is something to prefer."""
        if "worth_spread" not in values:
            return []
        spread = values["worth_spread"]
        said = f"the utility of a prompt's completions has the deviation {spread:.2g}"
        same = f"{said}: no signal; is it the same whatever is written?"
        return [(spread > 0, said if spread > 0 else same)]

    def reason(self, state: PairState) -> str:
        """Why a value was not finite, if the utility was the reason; else what may help."""
        told = None if self.asked is None else self.asked.why(state.fault)
        return told or self.settings.remedy

    def model(self, state: PairState) -> Any:
        """The model, in evaluation mode: a reward model's has a `score`."""
        return nnx.merge(self._graphdef, state.params, state.rest, copy=True)

    def judge(self, state: TrainState | None) -> Reward:
        """What a reward model pays for completions: its score; None: a new model's."""

        def score(
            prompts: jax.Array, completions: jax.Array, *, mask: jax.Array, **columns: Any
        ) -> jax.Array:
            known = self.init(jax.random.key(0)) if state is None else state
            model = nnx.merge(self._graphdef, known.params, known.rest, copy=True)
            last = prompts.shape[1] - 1 + mask.sum(1).astype(jnp.int32)
            return model.score(jnp.concatenate([prompts, completions], axis=1), last)

        return score

    @property
    def end_token(self) -> int | None:
        return None if self.prompts is None else self.prompts.end_token

    def scales(self, step: jax.Array) -> Values:
        """What the schedules say at a step, for the log."""
        return {"learning_rate": self.learning_rate(step)}

    def tokens(self, values: Mapping[str, float]) -> float:
        """Tokens of the completions of a prompt's pairs."""
        pairs = 1 if self.prompts is None else self.settings.pairs
        return 2 * pairs * values["train_length"]

    def _policy(self, rngs: nnx.Rngs) -> Any:
        model = self._make_model(rngs)
        model.eval()
        return model

    def _learner(self, rngs: nnx.Rngs) -> Any:
        policy = self._policy(rngs)
        if not self.settings.scores:
            return policy
        return critic_of(policy, rngs)

    def _sampled(self, model: Any, prompts: jax.Array, key: jax.Array, samples: int) -> Completions:
        assert self.asked is not None
        how = {"temperature": self.settings.temperature}
        return self.asked.sampled(model, prompts, key, samples, **how)

    def _pairs(
        self, state: PairState, batch: Any, key: jax.Array, doubt: float | None = None
    ) -> Pairs:
        """What is recorded of preferences; or what is drawn, and the judge prefers."""
        if self.prompts is None or self.asked is None:
            better, worse = ((batch[n], batch[f"{n}_mask"]) for n in ("chosen", "rejected"))
            return Pairs(better, worse, jnp.zeros((len(better[0]), 0)))
        batch = self.prompts.columns(batch)
        doubt = self.settings.doubt if doubt is None else doubt
        draw, judge = jax.random.split(key)
        policy = nnx.merge(self._policy_graphdef, *state.drawn_from, copy=True)
        drawn = 2 * self.settings.pairs
        found = self._sampled(policy, batch["prompt"], draw, drawn)
        rows = repeated(batch, drawn)
        sequences = jnp.concatenate([rows["prompt"], found.tokens], axis=1)
        paid = self.asked.paid(rows, found)
        fault = self.asked.first_fault(state.fault, paid.fault, rows["prompt"], found.tokens)
        worth = paid.total.reshape(-1, 2)
        lead = worth[:, 0] - worth[:, 1]
        certain = lead >= 0
        if doubt:
            noise = jax.random.logistic(judge, lead.shape)
            certain = lead + doubt * noise >= 0
        order = jnp.where(certain[:, None], jnp.array([[0, 1]]), jnp.array([[1, 0]]))
        at = 2 * jnp.arange(len(order))[:, None] + order
        masks = jnp.pad(found.mask.astype(jnp.float32), ((0, 0), (self.prompts.length, 0)))
        better, worse = ((sequences[rows], masks[rows]) for rows in (at[:, 0], at[:, 1]))
        return Pairs(better, worse, worth.reshape(-1, drawn), fault)

    def _compared(self, state: PairState, params: Any, pairs: Pairs) -> Values:
        better, worse = pairs.better, pairs.worse
        if self.settings.scores:
            model = nnx.merge(self._graphdef, params, state.rest, copy=True)
            first, second = (model.score(s, _last(mask)) for s, mask in (better, worse))
            margin = first - second
            losses = bradley_terry(first, second)
        else:
            new, old = (
                [self._log_likelihood(graphdef, variables, *each) for each in (better, worse)]
                for graphdef, variables in self._both(state, params)
            )
            margin = dpo_margin(*new, *old)
            losses = dpo(margin, self.settings.beta)
        # A tie is half right.
        right = jnp.where(margin == 0, 0.5, (margin > 0).astype(jnp.float32))
        lengths = (better[1].sum(1) + worse[1].sum(1)) / 2
        values = {"loss": losses, "pair_accuracy": right, "margin": margin, "length": lengths}
        values = {k: v.reshape(len(pairs.worth), -1).mean(1) for k, v in values.items()}
        if self.prompts is None:
            return values
        return values | {"worth": pairs.worth.mean(1), "worth_spread": pairs.worth.std(1, ddof=1)}

    def _both(self, state: PairState, params: Any) -> list[tuple[Any, Any]]:
        """The policy that learns and the frozen one: graph definition and variables."""
        learning = self._graphdef, (params, state.rest)
        return [learning, (self._policy_graphdef, state.drawn_from)]

    def _log_policy(
        self, graphdef: Any, variables: Any, sequences: jax.Array, start: int = 0
    ) -> jax.Array:
        """Of each token but the first, and but those up to `start`, (N, L - 1 - start, V)."""
        model = nnx.merge(graphdef, *variables, copy=True)
        logits = model(sequences[:, :-1], start=start)
        return nnx.log_softmax(logits / self.settings.temperature)

    def _log_likelihood(
        self, graphdef: Any, variables: Any, sequences: jax.Array, mask: jax.Array
    ) -> jax.Array:
        """Log-probability of whole completions, (N,)."""
        log_p = self._log_policy(graphdef, variables, sequences)
        return (kl.chosen(log_p, sequences[:, 1:]) * mask[:, 1:]).sum(1)


def _last(mask: jax.Array) -> jax.Array:
    """The place of the last token that counts, (N,)."""
    return jnp.argmax(mask * jnp.arange(mask.shape[1])[None], axis=1).astype(jnp.int32)

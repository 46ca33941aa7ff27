"""The gradient trainer: an objective, a learning rule and an optimizer.

GRLU, backprop and every other rule with the same door are this trainer with another rule.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from grlu.errors import UserError
from grlu.inspection import traced_and_own
from grlu.learned_feedback import add_feedback
from grlu.micro_batches import in_parts
from grlu.rule import pure_objective
from input_pipeline import Data
from trainers.blocks import Fold, averaged, taken
from trainers.objective import Objective
from trainers.precision import set_precision
from trainers.protocol import TrainerLike
from trainers.rule_settings import GradientSettings
from trainers.schedules import schedule
from trainers.state import Note, TrainState

Batch = Mapping[str, jax.Array]
Values = dict[str, jax.Array]

# State that an objective may change.
_KEPT = (nnx.BatchStat, Note)

# Examples of a step, times the members that see them, from which its operations feed threads.
_LARGE = 32


class Trainer(TrainerLike):
    """Pure functions of a run: `init`, `step`, `evaluate`.

    Attributes:
        metrics: names of the values that `step` gives: the objective's, and what a rule logs.
        evaluated: names of those that `evaluate` gives: the objective's.
        better: the metric that chooses checkpoints, and its direction.
        block: how many updates `steps` takes at once; 1 if there is nothing to gain by it.
        tiny: whether a step is operations of a microsecond each, as those on one example are.
        looped: whether many steps may be one program: not where there are convolutions.
    """

    def __init__(
        self,
        settings: GradientSettings,
        make_model: Callable[[nnx.Rngs], Any],
        steps_per_epoch: int,
        data: Data,
        judge: Any = None,
    ):
        self.settings = settings
        self.objective = settings.make_objective(data)
        if judge is not None:
            self.objective = self.objective.judged(judge)
        if self.objective.of_batches and settings.micro_batches > 1:
            raise UserError(
                f"trainer.objective={settings.objective} rewards a batch as a whole: set "
                f"trainer.micro_batches to 1, got {settings.micro_batches}"
            )
        self.evaluated = self.objective.evaluated
        self.better = self.objective.better
        monitors = settings.rule(getattr(settings, "sigma", None)).monitors
        self.metrics = (*self.objective.metrics, *monitors)
        steps = max(1, settings.epochs * steps_per_epoch)  # A schedule has no length of 0.
        hold = steps_per_epoch if settings.schedule_per == "epoch" else 1
        self.learning_rate = settings.rate(steps_per_epoch, hold=hold)
        given = vars(settings)
        self.sigma = schedule(
            given.get("sigma_schedule", "constant"),
            given.get("sigma", 0.0),
            given.get("sigma_end", 0.0),
            steps,
            warmup=round(settings.warmup * steps),
            hold=hold,
        )
        self.optimizer = settings.transformation(self.learning_rate)
        plain = settings.optimizer == "sgd" and settings.clip is None and settings.rule_class.local
        # A subclass with a step of its own must not be passed over.
        plain = plain and type(self).step is Trainer.step
        # An objective that changes from step to step is not one for all of a block.
        plain = plain and type(self.objective).at is Objective.at
        # A chunk finds its layers by their float32 products.
        plain = plain and settings.precision == "float32"
        plain = plain and settings.micro_batches == 1
        self.block = max(1, settings.online_chunk // settings.batch_size) if plain else 1
        self.tiny = settings.batch_size * given.get("population", 1) < _LARGE
        self._tokens = None if data.tokenizer is None else data.example_shape[0]

        def prepared(rngs: nnx.Rngs) -> Any:
            model = make_model(rngs)
            if given.get("feedback") is not None:
                add_feedback(model, data.num_classes)
            self.objective.prepare(model)
            return model

        self._make_model = prepared
        model = nnx.eval_shape(lambda: prepared(nnx.Rngs(0)))
        kinds = (nnx.Conv, nnx.ConvTranspose)
        self.looped = not any(isinstance(m, kinds) for _, m in nnx.iter_modules(model))
        model.eval()
        self._evaluating = nnx.graphdef(model)
        model.train()
        set_precision(model, settings.precision)
        self._training = nnx.graphdef(model)
        self._steps = steps

    def init(self, key: jax.Array) -> TrainState:
        """The state before the first step; the model is drawn from `key`."""
        init_key, run_key = jax.random.split(key)
        model = self._make_model(nnx.Rngs(init_key))
        model.train()
        _, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=run_key,
            params=params,
            rest=rest,
            opt_state=self.optimizer.init(params),
            average=None if self.settings.average is None else jax.tree.map(jnp.copy, params),
        )

    def _at(self, step: jax.Array) -> Objective:
        """The objective at a step."""
        return self.objective.at(step / self._steps)

    def _whole(self, step: jax.Array) -> Any:
        """The objective at a step, a function of params, rest and a whole batch."""
        return pure_objective(self._training, self._at(step), has_aux=True, update=_KEPT)

    def pure(self, step: jax.Array) -> Any:
        """The objective at a step, a function of params, rest and batch."""
        return in_parts(self._whole(step), self.settings.micro_batches, _KEPT)

    def rewards(self, state: TrainState, batch: Batch) -> tuple[jax.Array, jax.Array] | None:
        """Return the rewards of the network that the rule traces, and the model's own.

        None if the rule traces no network.
        """
        if not self.settings.rule(self.sigma(state.step)).traces:
            return None
        return traced_and_own(self._whole(state.step), state.params, state.rest, batch)

    def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Values]:
        """One update; the values, per example or one for all, are those of the state before it."""
        key = jax.random.fold_in(state.key, state.step)
        rule = self.settings.rule(self.sigma(state.step))
        _, (values, changed), ascent, monitored = rule.estimate(
            self.pure(state.step), state.params, state.rest, batch, key
        )
        grads = jax.tree.map(jnp.negative, ascent)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None:
            average = averaged(average, params, self.decay(state.step))
        state = state.replace(
            step=state.step + 1,
            params=params,
            rest=nnx.merge_state(state.rest, changed),
            opt_state=opt_state,
            average=average,
        )
        return state, values | monitored

    def steps(
        self, state: TrainState, batches: Batch, count: jax.Array, fold: Fold, start: Any
    ) -> tuple[TrainState, Any]:
        """The first `count` of a block's updates (`trainers.blocks.taken`)."""
        return taken(self, state, batches, count, fold, start)

    def decay(self, step: jax.Array) -> jax.Array:
        """Of the running average of the weights, at a step."""
        # A plain mean at first, so that the random initial weights are soon forgotten.
        return jnp.minimum(self.settings.average or 0.0, (1.0 + step) / (10.0 + step))

    def model(self, state: TrainState) -> Any:
        """The model in evaluation mode, with the averaged weights where there are any."""
        params = state.params if state.average is None else state.average
        return nnx.merge(self._evaluating, params, state.rest, copy=True)

    def evaluate(self, state: TrainState, batch: Batch) -> Values:
        """Values per example, deterministic."""
        return self.objective.evaluate(self.model(state), batch)

    def examples(self, state: TrainState, batch: Batch) -> list[dict[str, Any]]:
        """What a person should see of the model's answers, if the objective shows any."""
        return self.objective.examples(self.model(state), state.key, batch)

    def reason(self, state: TrainState) -> str:
        """Why a value was not finite, if the objective can tell; else what may help."""
        return self.objective.reason(self.model(state)) or self.settings.remedy

    @property
    def end_token(self) -> int | None:
        return self.objective.end_token

    def encode(self, state: TrainState, batch: Batch) -> jax.Array:
        """The features that the model makes of a batch's images, as in `evaluate`.

        Raises:
            UserError: if the model has none to give.
        """
        model = self.model(state)
        if not hasattr(model, "encode"):
            raise UserError(f"a {type(model).__name__} has no features to learn on, no `encode`")
        return model.encode(batch["image"])

    def tokens(self, values: Mapping[str, float]) -> float | None:
        """Tokens of an example: those that are scored, or that are drawn in the clean pass."""
        drawn = values.get("train_length")
        return self._tokens if drawn is None else drawn * self.objective.settings.completions

    def scales(self, step: jax.Array) -> dict[str, jax.Array]:
        """What the schedules say at a step, for the log."""
        scales = {"learning_rate": self.learning_rate(step)}
        scales |= self._at(step).scales()
        return scales | ({"sigma": self.sigma(step)} if "sigma" in vars(self.settings) else {})

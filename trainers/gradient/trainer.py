"""The gradient trainer: an objective, a learning rule and an optimizer.

GRLU, backprop and all other rules use this trainer, each with its own `grlu.Rule`.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree

from grlu.errors import UserError
from grlu.inspection.checks import traced_and_own
from grlu.micro_batches import in_parts
from grlu.rules.backprop import Backprop
from grlu.rules.learned_feedback import add_feedback
from grlu.rules.rule import Rule, pure_objective
from input_pipeline import Data
from models.text.gpt import GPT
from trainers.gradient.online import averaged, take_block
from trainers.gradient.settings import GradientSettings
from trainers.loop.state import TrainState
from trainers.loop.trainer import Arrays, BaseTrainer, Values
from trainers.objectives.base import Objective
from trainers.optimizer import schedule

# Variables that an objective may change.
_KEPT = nnx.BatchStat
# Layers that compute in the dtype of their attribute `dtype`. Parameters, normalisation, residual
# sums and the objective stay in float32.
_MULTIPLY = (nnx.Linear, nnx.LinearGeneral, nnx.Einsum, nnx.Conv, nnx.ConvTranspose, GPT)
# Steps with fewer examples times population members gain nothing from several threads.
_LARGE = 32


class Trainer(BaseTrainer):
    """Trainer that ascends an objective by the credit of a rule."""

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
            self.objective = self.objective.bind(judge)
        self.evidence = self.objective.evidence(settings.batch_size)
        if self.objective.of_batches and settings.micro_batches > 1:
            raise UserError(
                f"trainer.objective={settings.objective} rewards a batch as a whole: set "
                f"trainer.micro_batches to 1, got {settings.micro_batches}"
            )
        self.evaluated, self.better = self.objective.evaluated, self.objective.better
        self.metrics = (*self.objective.metrics, *settings.rule().monitors)
        # Schedules must not have length 0.
        self._steps = steps = max(1, settings.epochs * steps_per_epoch)
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
        plain = (
            settings.optimizer == "sgd"
            and settings.clip is None
            and settings.rule_class.local
            and type(self).step is Trainer.step  # A block would bypass a subclass's step.
            and type(self.objective).at is Objective.at  # A block has one objective.
            and settings.precision == "float32"  # A chunk recognises only float32 layers.
            and settings.micro_batches == 1
        )
        self.block = max(1, settings.online_chunk // settings.batch_size) if plain else 1
        if self.block > 1:
            self.steps = functools.partial(take_block, self)
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
        modules = [module for _, module in nnx.iter_modules(model)]
        self.looped = not any(isinstance(m, nnx.Conv | nnx.ConvTranspose) for m in modules)
        model.eval()
        self._evaluating = nnx.graphdef(model)
        model.train()
        for module in modules:
            if settings.precision == "bfloat16" and isinstance(module, _MULTIPLY):
                module.dtype = jnp.bfloat16
        self._training = nnx.graphdef(model)

    def init(self, key: jax.Array) -> TrainState:
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
        return self.objective.at(step / self._steps)

    def _whole(self, step: jax.Array) -> Any:
        """Return the objective at a step as a function of params, rest and a whole batch."""
        return pure_objective(self._training, self._at(step), has_aux=True, update=_KEPT)

    def pure(self, step: jax.Array) -> Any:
        """Return the objective at a step as a function of params, rest and batch."""
        return in_parts(self._whole(step), self.settings.micro_batches, _KEPT)

    def rewards(self, state: TrainState, batch: Arrays) -> tuple[jax.Array, jax.Array] | None:
        if not self.settings.rule(self.sigma(state.step)).traces:
            return None
        return traced_and_own(self._whole(state.step), state.params, state.rest, batch)

    @staticmethod
    def key(state: TrainState) -> jax.Array:
        """Return the key of the rule in a step."""
        return jax.random.fold_in(state.key, state.step)

    def updates(
        self, objective: Any, params: Any, state: TrainState, batch: Any
    ) -> tuple[Any, TrainState, Values]:
        """Compute updates of `params` by the rule, for an objective of `(params, rest, batch)`.

        Also return the state after the step, except for its params and average, and the values.
        """
        key = self.key(state)
        rule = self.settings.rule(self.sigma(state.step))
        _, (values, changed), ascent, monitored = rule.estimate(
            objective, params, state.rest, batch, key
        )
        grads = jax.tree.map(jnp.negative, ascent)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, params)
        rest = nnx.merge_state(state.rest, changed)
        state = state.replace(step=state.step + 1, rest=rest, opt_state=opt_state)
        return updates, state, values | monitored

    def alignment(self, state: TrainState, batch: Arrays) -> jax.Array:
        def flat(rule: Rule) -> jax.Array:
            args = self.pure(state.step), state.params, state.rest, batch, self.key(state)
            return ravel_pytree(rule.estimate(*args)[2])[0]

        one, two = flat(self.settings.rule(self.sigma(state.step))), flat(Backprop())
        return jnp.stack([one @ two, one @ one, two @ two])

    def step(self, state: TrainState, batch: Arrays) -> tuple[TrainState, Values]:
        """Take one update; the values, per example or one per batch, are those before it."""
        step = state.step
        updates, state, values = self.updates(self.pure(step), state.params, state, batch)
        params: Any = optax.apply_updates(state.params, updates)
        return self.moved(state, params, step), values

    def moved(self, state: TrainState, params: Any, step: jax.Array) -> TrainState:
        """Return a state with new parameters, and their running average after `step`."""
        if state.average is not None:
            state = state.replace(average=averaged(state.average, params, self.decay(step)))
        return state.replace(params=params)

    def decay(self, step: jax.Array) -> jax.Array:
        """Return the decay of the running average of the weights at a step."""
        # Almost a plain mean at first, to forget the random initial weights soon.
        return jnp.minimum(self.settings.average or 0.0, (1.0 + step) / (10.0 + step))

    def model(self, state: TrainState) -> Any:
        """Return the model in evaluation mode, with the averaged weights if there are any."""
        params = state.params if state.average is None else state.average
        return nnx.merge(self._evaluating, params, state.rest, copy=True)

    def evaluate(self, state: TrainState, batch: Arrays) -> Values:
        return self.objective.evaluate(self.model(state), batch)

    def examples(self, state: TrainState, batch: Arrays) -> list[dict[str, Any]]:
        return self.objective.examples(self.model(state), state.key, batch)

    def pictures(self, state: TrainState, x: jax.Array) -> dict[str, jax.Array]:
        return self.objective.pictures(self.model(state), x)

    @property
    def constants(self) -> Any:
        return self.objective.constants

    def bind(self, constants: Any) -> "Trainer":
        bound = copy.copy(self)
        bound.objective = self.objective.bind(constants)
        if self.block > 1:
            bound.steps = functools.partial(take_block, bound)
        return bound

    def reason(self, evidence: Mapping[str, Any]) -> str:
        return self.objective.reason(evidence) or self.settings.remedy

    @property
    def end_token(self) -> int | None:
        return self.objective.end_token

    def encode(self, state: TrainState, batch: Arrays) -> jax.Array:
        """Return the model's features of a batch of images, as in `evaluate`."""
        model = self.model(state)
        if not hasattr(model, "encode"):
            raise UserError(f"a {type(model).__name__} has no features to learn on, no `encode`")
        return model.encode(batch["image"])

    def tokens(self, values: Mapping[str, float]) -> float | None:
        """Return the number of tokens per example: of its text, or sampled in the clean pass."""
        sampled = values.get("train_length")
        return self._tokens if sampled is None else sampled * self.objective.settings.completions

    def scales(self, step: jax.Array) -> dict[str, jax.Array]:
        sigma = {"sigma": self.sigma(step)} if "sigma" in vars(self.settings) else {}
        return {"learning_rate": self.learning_rate(step), **self._at(step).scales(), **sigma}

"""The door that all learning rules share: a drop-in for `nnx.value_and_grad` of a mean reward."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from grlu.errors import UserError
from grlu.tracing.network import Objective
from grlu.tracing.widening import widened

# (model, batch) -> rewards (B,), or (rewards, aux) with has_aux
RewardFn = Callable[[Any, Any], Any]
# (model, batch, key) -> (reward, grads), or ((reward, aux), grads)
Estimate = Callable[[Any, Any, jax.Array], tuple[Any, nnx.State]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A learning rule: turns a reward function into an estimator of the reward's gradient.

    Attributes:
        wrt: NNX filter of the variables to train; all others are constants to the rule.
        local: class attribute: whether the gradient of a dense layer is its input times a credit
            of its output alone, as an exact gradient's and a local rule's is; first layers can then
            learn online in chunks (`grlu.online`).
        of_weights: class attribute: whether the rule moves the weights themselves and looks at the
            reward alone, which then needs no slope: moved weights can draw what is rewarded.
        dealt: class attribute: the field with the number of noisy passes that several devices share
            (`grlu.spread`), "" if there is none, and how many of them belong together.
        update: NNX filter of the variables, such as `nnx.BatchStat`, that the estimate writes back
            to the caller's model from its clean pass; by default it leaves the model as it was.
    """

    wrt: Any = nnx.Param
    update: Any = None

    local: ClassVar[bool] = False
    of_weights: ClassVar[bool] = False
    dealt: ClassVar[tuple[str, int]] = ("", 1)

    def __call__(self, reward_fn: RewardFn, *, has_aux: bool = False) -> Estimate:
        """Makes the estimator for a reward function.

        Args:
            reward_fn: `reward_fn(model, batch) -> rewards` of shape (B,), one per example; with
                `has_aux` it returns `(rewards, aux)`.
            has_aux: as in `jax.value_and_grad`.

        Returns:
            `estimate(model, batch, key) -> (reward, grads)`: the mean reward of a clean pass, and
            an estimate of the gradient of *minus* the mean reward, in the structure of
            `nnx.state(model, wrt)`, as `nnx.Optimizer.update` takes it. With `has_aux`,
            `((reward, aux), grads)`. The model's rng streams are reseeded from `key`, so that the
            same key gives the same estimate.
        """

        def estimate(model: Any, batch: Any, key: jax.Array) -> tuple[Any, nnx.State]:
            graphdef, params, rest = nnx.split(model, self.wrt, ...)  # type: ignore[misc]

            objective = pure_objective(graphdef, reward_fn, has_aux, self.update)
            rewards, extra, ascent, _ = self.estimate(objective, params, rest, batch, key)
            aux, changed = extra
            if changed is not None:
                nnx.update(model, changed)
            grads = jax.tree.map(jnp.negative, ascent)
            reward = jnp.mean(rewards)
            return ((reward, aux) if has_aux else reward), grads

        return estimate

    def estimate(
        self, objective: Objective, params: Any, rest: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, Any, dict[str, jax.Array]]:
        """`monitored`, with the rng streams in `rest` and the rule's own noise drawn from `key`."""
        draw, noise = jax.random.split(key)
        return self.monitored(objective, params, reseed(rest, draw), batch, noise)

    @property
    def traces(self) -> bool:
        """Whether the rule traces the network to find its sites."""
        return False

    @property
    def monitors(self) -> tuple[str, ...]:
        """Names of the scalars that `monitored` adds, which a run logs beside its metrics."""
        return ()

    def monitored(
        self, objective: Objective, params: Any, rest: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, Any, dict[str, jax.Array]]:
        """What `gradient` gives, and the scalars that `monitors` names."""
        return *self.gradient(objective, params, rest, batch, key), {}

    def gradient(
        self, objective: Objective, params: Any, rest: Any, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, Any, Any]:
        """The rule itself: `(rewards, aux, gradient of the mean reward)`, in pure functions.

        Args:
            objective: `(params, rest, batch) -> (rewards, aux)`.
            params: state to train.
            rest: the model's other state, rng streams (dropout, Gumbel top-k, samples) reseeded.
            batch: the batch.
            key: of the rule's own randomness.
        """
        raise TypeError(f"{type(self).__name__} is a rule without a gradient: override it")


def pure_objective(
    graphdef: Any, reward_fn: RewardFn, has_aux: bool = False, update: Any = None
) -> Objective:
    """A reward function as a pure function of the model's state.

    Returns:
        `(params, rest, batch) -> (rewards, (aux, changed))`, `changed` being the state that the
        filter `update` selects, after the pass.
    """

    def objective(params: Any, rest: Any, batch: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(graphdef, params, rest, copy=True)
        out = reward_fn(model, batch)
        rewards, aux = out if has_aux else (out, None)
        changed = None if update is None else nnx.state(model, update)
        return check_rewards(rewards, batch), (aux, changed)

    return objective


def reseed(rest: Any, key: jax.Array) -> Any:
    """The state `rest` with every rng stream restarted from `key`."""
    streams = 0

    def restart(path: Any, variable: Any) -> Any:
        nonlocal streams
        if isinstance(variable, nnx.RngKey):
            streams += 1
            own = jax.random.fold_in(key, streams)
            shape = variable[...].shape
            return variable.replace(jax.random.split(own, shape) if shape else own)
        if isinstance(variable, nnx.RngCount):
            return variable.replace(jnp.zeros_like(variable[...]))
        return variable

    return nnx.map_state(restart, rest)


def check_rewards(rewards: Any, batch: Any) -> jax.Array:
    """Return rewards of shape (B,), in float32 at least.

    Raises:
        UserError: if there is not one real number per example.
    """
    sizes = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)}
    shape = jnp.shape(rewards)
    if len(shape) != 1 or (sizes and shape[0] not in sizes):
        expected = f"({', '.join(str(s) for s in sorted(sizes))},)" if sizes else "(B,)"
        raise UserError(
            f"the reward function must return one reward per example, shape {expected}, "
            f"got shape {shape}"
        )
    if not jnp.issubdtype(jnp.result_type(rewards), jnp.floating):
        raise UserError(f"the reward function must return floats, got {jnp.result_type(rewards)}")
    return widened(rewards)

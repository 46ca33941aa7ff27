"""Base class of all learning rules: a drop-in for `nnx.value_and_grad` of a mean reward."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx

from grlu.errors import UserError
from grlu.jaxprs.widening import widened
from grlu.network import Aux, Batch, Objective, Params, State

Model: TypeAlias = Any
"""An `nnx.Module`."""

RewardFn: TypeAlias = Callable[[Model, Batch], Any]
"""`(model, batch) -> rewards` of shape (B,), or `(rewards, aux)` with `has_aux`."""

Estimate: TypeAlias = Callable[[Model, Batch, jax.Array], tuple[Any, nnx.State]]
"""`(model, batch, key) -> (reward, grads)`, or `((reward, aux), grads)` with `has_aux`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Learning rule: turns a reward function into an estimator of the reward's gradient.

    Attributes:
        wrt: NNX filter of the variables to train; the rule treats all others as constants.
        update: NNX filter of the variables, such as `nnx.BatchStat`, that the estimate writes back
            to the caller's model from its clean pass; by default it leaves the model unchanged.
        local: class attribute: True if the gradient of a dense layer is its input times a credit
            of its output alone, as for exact gradients and local rules; first layers can then learn
            online in chunks (`grlu.online`).
        of_weights: class attribute: True if the rule perturbs the weights themselves and needs only
            the reward's value, not its derivative: the perturbed weights can then sample the
            completions that are rewarded.
        dealt: class attribute: name of the field that counts the noisy passes to shard over devices
            (`grlu.noise.spread`), or "", and the number of passes to keep on one device.
    """

    wrt: Any = nnx.Param
    update: Any = None

    local: ClassVar[bool] = False
    of_weights: ClassVar[bool] = False
    dealt: ClassVar[tuple[str, int]] = ("", 1)

    def __call__(self, reward_fn: RewardFn, *, has_aux: bool = False) -> Estimate:
        """Return the estimator for a reward function.

        Args:
            reward_fn: `reward_fn(model, batch) -> rewards` of shape (B,), one per example; with
                `has_aux` it returns `(rewards, aux)`.
            has_aux: as in `jax.value_and_grad`.

        Returns:
            `estimate(model, batch, key) -> (reward, grads)`: the mean reward of a clean pass and
            an estimate of the gradient of *minus* the mean reward, in the structure of
            `nnx.state(model, wrt)`, as `nnx.Optimizer.update` takes it. With `has_aux`,
            `((reward, aux), grads)`. The model's PRNG streams are reseeded from `key`, so that the
            same key gives the same estimate.
        """

        def estimate(model: Model, batch: Batch, key: jax.Array) -> tuple[Any, nnx.State]:
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
        self, objective: Objective, params: Params, rest: State, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux, Params, dict[str, jax.Array]]:
        """Call `monitored` with the PRNG streams in `rest` and the rule's noise seeded by `key`."""
        rest, noise_key = seeded(rest, key)
        return self.monitored(objective, params, rest, batch, noise_key)

    @property
    def traces(self) -> bool:
        """Return True if the rule traces the network to find its sites."""
        return False

    @property
    def monitors(self) -> tuple[str, ...]:
        """Return the names of the scalars that `monitored` adds, which a run logs as metrics."""
        return ()

    def passes(self, hidden: int | None = None) -> tuple[int, str] | None:
        """Return the forward passes per training example and their description.

        A clean pass that accompanies noisy ones is not counted.

        Args:
            hidden: number of the model's hidden layers in sequence, or None if unknown.

        Returns:
            The number and its description, or None if the number is unknown.
        """
        del hidden
        return None

    def monitored(
        self, objective: Objective, params: Params, rest: State, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux, Params, dict[str, jax.Array]]:
        """Return the results of `gradient` and the scalars named by `monitors`."""
        return *self.gradient(objective, params, rest, batch, key), {}

    def gradient(
        self, objective: Objective, params: Params, rest: State, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, Aux, Params]:
        """Return `(rewards, aux, gradient of the mean reward)`, using pure functions only.

        Args:
            objective: `(params, rest, batch) -> (rewards, aux)`.
            params: state to train.
            rest: the model's other state, with PRNG streams (dropout, Gumbel top-k) reseeded.
            batch: the batch.
            key: PRNG key of the rule's own randomness.
        """
        raise TypeError(f"{type(self).__name__} must override `gradient`")


def pure_objective(
    graphdef: Any, reward_fn: RewardFn, has_aux: bool = False, update: Any = None
) -> Objective:
    """Return a reward function as a pure function of the model's state.

    Returns:
        `(params, rest, batch) -> (rewards, (aux, changed))`, where `changed` is the state selected
        by the filter `update`, after the pass.
    """

    def objective(params: Params, rest: State, batch: Batch) -> tuple[jax.Array, Any]:
        model = nnx.merge(graphdef, params, rest, copy=True)
        out = reward_fn(model, batch)
        rewards, aux = out if has_aux else (out, None)
        changed = None if update is None else nnx.state(model, update)
        return check_rewards(rewards, batch), (aux, changed)

    return objective


def seeded(rest: State, key: jax.Array) -> tuple[State, jax.Array]:
    """Return the state with PRNG streams seeded by a step's `key`, and the key of its noise."""
    model_key, noise_key = jax.random.split(key)
    return reseed(rest, model_key), noise_key


def reseed(rest: State, key: jax.Array) -> State:
    """Return the state `rest` with every PRNG stream restarted from `key`."""
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


def check_rewards(rewards: Any, batch: Batch) -> jax.Array:
    """Return rewards of shape (B,), in at least float32.

    Raises:
        UserError: if the rewards are not one real number per example.
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

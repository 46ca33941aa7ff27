"""Scores of completions: a weighted sum of reward functions."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from grlu.errors import UserError
from trainers.completions.rewards import PythonReward, RewardFunction, reward_named


class Scores(NamedTuple):
    """Rewards of N completions.

    Attributes:
        per_completion: weighted sum of the rewards that give one number per completion, (N,).
        per_token: weighted sum of those that give one per token, (N, T), 0 outside the mask.
        by_function: reward of each function before weighting, summed over tokens, each (N,).
    """

    per_completion: jax.Array
    per_token: jax.Array
    by_function: tuple[jax.Array, ...]

    @property
    def total(self) -> jax.Array:
        """Sum of all rewards of a completion, (N,)."""
        return self.per_completion + self.per_token.sum(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Rewards:
    """A weighted sum of rewards.

    Attributes:
        functions: reward functions by name.
        weights: their weights, in the same order.
    """

    functions: Mapping[str, RewardFunction]
    weights: tuple[float, ...]

    def __call__(
        self, prompts: jax.Array, completions: jax.Array, judge: Any = None, **columns: Any
    ) -> Scores:
        """Score completions (N, T) of prompts (N, P); only the reward "judge" gets `judge`.

        Raises:
            UserError: if a function raises or returns another shape than (N,) or (N, T).
        """
        mask = columns["mask"]
        per_completion, per_token = jnp.zeros(len(completions)), jnp.zeros(completions.shape)
        by_function = []
        for (name, function), weight in zip(self.functions.items(), self.weights, strict=True):
            given = {**columns, "judge": judge} if name == "judge" else columns
            rewards = _call(name, function, prompts, completions, given)
            if rewards.ndim == 2:
                rewards = jnp.where(mask > 0, rewards, 0.0)
                per_token = per_token + weight * rewards
            else:
                per_completion = per_completion + weight * rewards
            by_function.append(rewards.reshape(len(rewards), -1).sum(1))
        return Scores(per_completion, per_token, tuple(by_function))

    @property
    def use_target(self) -> bool:
        """True if a function compares completions with the data's own continuation."""
        return any(_has_target(function) for function in self.functions.values())

    @property
    def raised(self) -> dict[str, str]:
        """Exceptions that rewards in Python raised in this run, by the rewards' names."""
        functions = self.functions.items()
        return {n: f.raised for n, f in functions if isinstance(f, PythonReward) and f.raised}


def rewards_from(names: Sequence[str], weights: Sequence[float] | None) -> Rewards:
    """Return the rewards of a config's names, with these weights or 1 each.

    Raises:
        UserError: if a name is unknown or repeated, or the numbers of names and weights differ.
    """
    if not names:
        raise UserError("trainer.rewards is empty: name at least one reward")
    weights = [1.0] * len(names) if weights is None else weights
    if len(weights) != len(names):
        raise UserError(
            f"trainer.reward_weights must have a weight for each of the {len(names)} rewards, "
            f"got {len(weights)}"
        )
    short = [short_name(name) for name in names]
    if twice := next((name for name in short if short.count(name) > 1), None):
        raise UserError(f"trainer.rewards names {twice!r} twice: each must have a name of its own")
    functions = {name: reward_named(name) for name in names}
    for function in functions.values():
        if isinstance(function, PythonReward):
            function.raised = None  # An exception of an earlier run.
    return Rewards(functions, tuple(weights))


def short_name(name: str) -> str:
    """Return the name that a reward has in metrics: its function's, or its number."""
    return name.rpartition(":")[2]


def _has_target(function: RewardFunction) -> bool:
    try:
        return "target" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # a callable without a signature
        return False


def _call(
    name: str, function: RewardFunction, prompts: jax.Array, completions: jax.Array, columns: Any
) -> jax.Array:
    try:
        rewards = function(prompts, completions, **columns)
    except UserError:
        raise
    except Exception as error:  # any error of the user's function
        untraceable = jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError
        hint = "; one that can't be traced by JAX goes through trainers.in_python"
        about = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise UserError(
            f"the reward {name!r} raised {about} for completions of shape {completions.shape}"
            f"{hint if isinstance(error, untraceable) else ''}"
        ) from error
    shape = jnp.shape(rewards)
    if shape not in (completions.shape, completions.shape[:1]):
        raise UserError(
            f"the reward {name!r} must return one number per completion, shape "
            f"{completions.shape[:1]}, or one per token, {completions.shape}; it returned {shape} "
            f"for completions of shape {completions.shape}"
        )
    return jnp.asarray(rewards, jnp.float32)

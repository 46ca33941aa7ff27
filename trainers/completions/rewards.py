"""Reward functions of completions.

A reward function maps token arrays to numbers and is traced into the compiled step:

    reward(prompts, completions, **columns) -> (N,), one number per completion, or (N, T), per token

`prompts` (N, P) and `completions` (N, T) hold token numbers. The columns are `mask` (N, T), 1 at
the tokens of a completion, `wrong`, the reward of a wrong answer, 0 or -1, and the data set's other
columns, such as `target` (N, T), the data's own continuation: a run whose rewards have a parameter
of this name reports how many completions match. `in_python` is for what JAX cannot trace.
"""

import functools
import pathlib
import re
import runpy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from grlu.errors import UserError
from trainers.config.schema import unknown

RewardFunction = Callable[..., jax.Array]


def match(
    prompts: Any, completions: jax.Array, *, target: jax.Array, wrong: float, **columns: Any
) -> jax.Array:
    """Return 1 for each token that equals the target's at its position, else `wrong`, (N, T)."""
    return jnp.where(completions == target, 1.0, wrong)


def exact(
    prompts: Any, completions: jax.Array, *, target: jax.Array, wrong: float, **columns: Any
) -> jax.Array:
    """Return 1 for each completion that equals its target up to the end, else `wrong`, (N,).

    Both are padded with end tokens, so their lengths must agree, too.
    """
    return jnp.where((completions == target).all(1), 1.0, wrong)


def share(prompts: Any, completions: jax.Array, *, target: jax.Array, **columns: Any) -> jax.Array:
    """Return the fraction of positions at which a completion has the target's token, (N,)."""
    return (completions == target).mean(1)


def preference_score(
    prompts: Any, completions: jax.Array, *, mask: jax.Array, **columns: Any
) -> jax.Array:
    """Return the sum of fixed scores of a completion's tokens, (N,), sampled once from N(0, 1).

    The scores are known, so they show how well a model learns from preferences based on them.
    """
    scores = jax.random.normal(jax.random.key(7), (2**16,))
    return (scores[completions] * mask).sum(1)


def token(number: int, prompts: Any, completions: Any, *, wrong: float, **_: Any) -> jax.Array:
    """Return 1 for each token that is `number`, else `wrong`, (N, T)."""
    return jnp.where(completions == number, 1.0, wrong)


class Judge(struct.PyTreeNode):
    """A trained reward model that scores completions.

    Attributes:
        variables: the model's state; compiled programs take it as an argument.
        graphdef: the model's graph definition.
    """

    variables: Any
    graphdef: Any = struct.field(pytree_node=False)


def judge(
    prompts: Any, completions: Any, *, mask: jax.Array, judge: Judge | None = None, **columns: Any
) -> jax.Array:
    """Return the scores of the reward model that the config's `judge` names, (N,)."""
    if judge is None:
        raise UserError(
            "the reward 'judge' needs a reward model: name its stage, or its run, by judge"
        )
    model = nnx.merge(judge.graphdef, *judge.variables, copy=True)
    last = prompts.shape[1] - 1 + mask.sum(1).astype(jnp.int32)
    return model.score(jnp.concatenate([prompts, completions], axis=1), last)


# Add your own: `trainers.COMPLETION_REWARDS["brief"] = lambda prompts, completions, **columns: ...`
COMPLETION_REWARDS: dict[str, RewardFunction] = {
    "exact": exact,
    "judge": judge,
    "match": match,
    "preference_score": preference_score,
    "share": share,
    "taste": preference_score,  # The name in configs of older runs.
}


class PythonReward:
    """A reward that calls any Python code with numpy arrays, outside the compiled step.

    The function must be pure. The step waits for it, so it is slower than a traced reward.

    Args:
        function: takes the arguments of a reward and returns numbers, shape (N,).
        per_token: True if it returns shape (N, T).

    Attributes:
        raised: the last exception of the function, as text, or None. A callback can return only
            numbers to the compiled step: it returns NaN, and the run's error quotes this text.
    """

    def __init__(self, function: RewardFunction, *, per_token: bool = False):
        functools.update_wrapper(self, function)
        self._function, self._per_token = function, per_token
        self.raised: str | None = None

    def __call__(self, prompts: jax.Array, completions: jax.Array, **columns: Any) -> jax.Array:
        shape = completions.shape if self._per_token else completions.shape[:1]

        def call(*arguments: Any) -> np.ndarray:
            prompts, completions, columns = jax.tree.map(np.asarray, arguments)
            try:
                rewards = np.asarray(self._function(prompts, completions, **columns), np.float32)
                if rewards.shape != shape:
                    raise ValueError(f"returned shape {rewards.shape}, expected {shape}")
                return rewards
            except Exception as error:  # anything that a user's function raises
                self.raised = f"{type(error).__name__}: {error}"
                return np.full(shape, np.nan, np.float32)

        out = jax.ShapeDtypeStruct(shape, jnp.float32)
        arguments = (prompts, completions, columns)
        return jax.pure_callback(call, out, *arguments, vmap_method="sequential")


in_python = PythonReward


def reward_named(name: str) -> RewardFunction:
    """Return the named reward function, or raise UserError."""
    if name in COMPLETION_REWARDS:
        return COMPLETION_REWARDS[name]
    if found := re.fullmatch(r"token:(\d+)", name):
        return functools.partial(token, int(found[1]))
    if not (found := re.fullmatch(r"(.+\.py):(\w+)", name)):
        raise unknown(f"there is no reward {name!r}", name, COMPLETION_REWARDS)
    path, function = pathlib.Path(found[1]), found[2]
    if not path.is_file():
        raise UserError(f"the reward {name!r} can't be read: there is no file {path}")
    module = _run(path, path.stat().st_mtime_ns)
    if function not in module:
        raise UserError(f"{path} defines no function {function!r}")
    return module[function]


@functools.lru_cache(16)
def _run(path: pathlib.Path, modified: int) -> dict[str, Any]:
    """Return the globals of a user's file, which runs again only after it was modified."""
    try:
        return runpy.run_path(str(path))
    except (Exception, SystemExit) as error:  # any error of the user's file
        raise UserError(f"{path} can't be run: {type(error).__name__}: {error}") from error

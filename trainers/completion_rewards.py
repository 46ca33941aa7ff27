"""What a completion is paid: a list of functions with weights.

A reward is a function of token arrays, traced into the compiled step:

    reward(prompts, completions, **columns) -> (N,) one number a completion, or (N, T) one a token

`prompts` (N, P) and `completions` (N, T) are token numbers; the columns are `mask` (N, T), 1 at the
tokens of the completion, `wrong`, what a wrong answer is paid, 0 or -1, and what the data set has
besides, such as `target` (N, T). A plain Python function, which cannot be traced, goes through
`in_python`.
"""

import dataclasses
import functools
import pathlib
import re
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grlu.errors import UserError
from trainers.schema import unknown

Reward = Callable[..., jax.Array]


def match(
    prompts: jax.Array, completions: jax.Array, *, target: jax.Array, wrong: float, **columns: Any
) -> jax.Array:
    """Per token: 1 where it is the target's at that place, else `wrong`."""
    return jnp.where(completions == target, 1.0, wrong)


def exact(
    prompts: jax.Array,
    completions: jax.Array,
    *,
    target: jax.Array,
    wrong: float,
    **columns: Any,
) -> jax.Array:
    """Per completion: 1 if all of it is the target's, to its end, else `wrong`.

    What follows the end token is an end token in both, so that lengths are compared, too.
    """
    return jnp.where((completions == target).all(1), 1.0, wrong)


def share(
    prompts: jax.Array, completions: jax.Array, *, target: jax.Array, **columns: Any
) -> jax.Array:
    """Per completion: the share of the places where it has the target's token."""
    return (completions == target).mean(1)


def taste(
    prompts: jax.Array, completions: jax.Array, *, mask: jax.Array, **columns: Any
) -> jax.Array:
    """Per completion: the sum of what its tokens are worth, each drawn from N(0, 1) once for all.

    A known utility, for a judge who prefers the one of two completions that has more of it.
    """
    worth = jax.random.normal(jax.random.key(7), (2**16,))
    return (worth[completions] * mask).sum(1)


def token(number: int) -> Reward:
    """Per token: 1 where it is that one, whatever the data say, else `wrong`."""

    def reward(
        prompts: jax.Array, completions: jax.Array, *, wrong: float, **columns: Any
    ) -> jax.Array:
        return jnp.where(completions == number, 1.0, wrong)

    return reward


# Add your own: `trainers.COMPLETION_REWARDS["brief"] = lambda prompts, completions, **columns: ...`
COMPLETION_REWARDS: dict[str, Reward] = {
    "exact": exact,
    "match": match,
    "share": share,
    "taste": taste,
}


def in_python(function: Reward, *, per_token: bool = False) -> Reward:
    """A reward computed outside the compiled step, by any Python code on numpy arrays.

    It must be a pure function of its arguments. Slower: the step waits for it.

    Args:
        function: takes what a reward takes, and gives numbers, (N,), or (N, T) with `per_token`.
    """

    def reward(prompts: jax.Array, completions: jax.Array, **columns: Any) -> jax.Array:
        shape = completions.shape if per_token else completions.shape[:1]

        def called(prompts: Any, completions: Any, columns: Any) -> np.ndarray:
            arrays = jax.tree.map(np.asarray, (prompts, completions, columns))
            found = np.asarray(function(*arrays[:2], **arrays[2]), np.float32)
            if found.shape != shape:
                raise ValueError(f"gave the shape {found.shape} and not {shape}")
            return found

        def guarded(*arguments: Any) -> np.ndarray:
            # The compiled step can only be told by a value; the words are kept for `Rewards.why`.
            try:
                return called(*arguments)
            except Exception as error:
                reward.__dict__["fault"] = f"{type(error).__name__}: {error}"
                return np.full(shape, np.nan, np.float32)

        out = jax.ShapeDtypeStruct(shape, jnp.float32)
        arguments = (prompts, completions, columns)
        return jax.pure_callback(guarded, out, *arguments, vmap_method="sequential")

    return reward


class Paid(NamedTuple):
    """What N completions are paid.

    Attributes:
        whole: weighted sum of the rewards per completion, (N,).
        each: that of the rewards per token, (N, T), 0 outside the mask.
        singles: of each function, its reward, summed over the tokens, (N,).
        fault: the number of the first reward that is not finite, and that of its completion, int32
            of shape (2,); -1 if there is none.
    """

    whole: jax.Array
    each: jax.Array
    singles: tuple[jax.Array, ...]
    fault: jax.Array

    @property
    def total(self) -> jax.Array:
        """The sum of all rewards of a completion, (N,)."""
        return self.whole + self.each.sum(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Rewards:
    """A weighted sum of rewards.

    Attributes:
        functions: name → reward.
        weights: of each, in the same order.
    """

    functions: Mapping[str, Reward]
    weights: tuple[float, ...]

    def __call__(self, prompts: jax.Array, completions: jax.Array, **columns: Any) -> Paid:
        """Pays completions.

        Raises:
            UserError: on a function that raises, or gives another shape than it must.
        """
        mask = columns["mask"]
        whole, each = jnp.zeros(len(completions)), jnp.zeros(completions.shape)
        singles, fault = [], jnp.full(2, -1, jnp.int32)
        for i, (name, function) in enumerate(self.functions.items()):
            found = _called(name, function, prompts, completions, columns)
            if found.ndim == 2:
                found = jnp.where(mask > 0, found, 0.0)
                each = each + self.weights[i] * found
            else:
                whole = whole + self.weights[i] * found
            by_completion = found.reshape(len(found), -1)
            singles.append(by_completion.sum(1))
            bad = ~jnp.isfinite(by_completion).all(1)
            first = jnp.stack([jnp.full((), i), jnp.argmax(bad)]).astype(jnp.int32)
            fault = jnp.where(bad.any() & (fault[0] < 0), first, fault)
        return Paid(whole, each, tuple(singles), fault)

    def judged(self, judge: Reward) -> "Rewards":
        """These rewards, with what a reward model pays as "judge"."""
        return dataclasses.replace(self, functions={**self.functions, "judge": judge})

    @property
    def raised(self) -> dict[str, str]:
        """What rewards that are Python raised in the course of a run, by their names."""
        found = {name: getattr(f, "fault", None) for name, f in self.functions.items()}
        return {name: fault for name, fault in found.items() if fault}

    def why(self, reward: int, prompt: str, completion: str) -> str:
        """A sentence on the fault of a reward, by its number, at a completion."""
        name = list(self.functions)[reward]
        raised = self.raised.get(name)
        what = f"raised {raised}" if raised else "gave a value that is not finite"
        return f"the reward {name!r} {what} for the completion {completion!r} of {prompt!r}"


def rewards_of(names: Sequence[str], weights: Sequence[float] | None) -> Rewards:
    """The rewards of these names: entries of `COMPLETION_REWARDS`, `token:NUMBER`, or
    `FILE.py:FUNCTION`; "judge" stands for a reward model (`Rewards.judged`).

    Raises:
        UserError: if there is none of that name, or not a weight for each.
    """
    if not names:
        raise UserError("trainer.rewards is empty: name at least one reward")
    if weights is None:
        weights = [1.0] * len(names)
    if len(weights) != len(names):
        raise UserError(
            f"trainer.reward_weights must have a weight for each of the {len(names)} rewards, "
            f"got {len(weights)}"
        )
    short = [short_name(name) for name in names]
    if twice := next((name for name in short if short.count(name) > 1), None):
        raise UserError(f"trainer.rewards names {twice!r} twice: each must have a name of its own")
    found = {n: no_judge if n == "judge" else reward_named(n) for n in names}
    for function in found.values():  # Of a run before.
        getattr(function, "__dict__", {}).pop("fault", None)
    return Rewards(found, tuple(weights))


def short_name(name: str) -> str:
    """The name of a reward's metric: that of its function, or its number."""
    return name.rpartition(":")[2]


def no_judge(prompts: jax.Array, completions: jax.Array, **columns: Any) -> jax.Array:
    """Stands for the reward of a judge who is not there.

    Raises:
        UserError: always.
    """
    raise UserError("the reward 'judge' needs a reward model: name its stage, or its run, by judge")


def reward_named(name: str) -> Reward:
    """The reward of that name; raises UserError if there is none."""
    if name in COMPLETION_REWARDS:
        return COMPLETION_REWARDS[name]
    if found := re.fullmatch(r"token:(\d+)", name):
        return token(int(found[1]))
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
def _run(path: pathlib.Path, written: int) -> dict[str, Any]:
    """What a user's file defines, run once as long as it stays as it is."""
    try:
        return runpy.run_path(str(path))
    except (Exception, SystemExit) as error:  # whatever the user's file does
        raise UserError(f"{path} can't be run: {type(error).__name__}: {error}") from error


def _called(
    name: str, function: Reward, prompts: jax.Array, completions: jax.Array, columns: Any
) -> jax.Array:
    try:
        found = function(prompts, completions, **columns)
    except UserError:
        raise
    except Exception as error:  # whatever the user's function does
        hint = (
            "; one that can't be traced by JAX goes through trainers.in_python"
            if isinstance(
                error, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError
            )
            else ""
        )
        about = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise UserError(
            f"the reward {name!r} raised {about} for completions of shape {completions.shape}{hint}"
        ) from error
    shape = jnp.shape(found)
    if shape not in (completions.shape, completions.shape[:1]):
        raise UserError(
            f"the reward {name!r} must give one number a completion, shape "
            f"{completions.shape[:1]}, or one a token, {completions.shape}; it gave {shape} for "
            f"completions of shape {completions.shape}"
        )
    return jnp.asarray(found, jnp.float32)

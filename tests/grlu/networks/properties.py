"""Properties of every network: tracing is exact, and rules find its gradient."""

import dataclasses
import math
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import grlu
from grlu.jaxprs.widening import in_float32
from grlu.network import trace
from grlu.noise.parameters import ParameterNoise
from grlu.rules.rule import pure_objective, reseed
from tests.grlu.networks.grammar import build
from tests.grlu.networks.interpreter import evaluate
from tests.grlu.networks.recipes import Recipe
from tests.grlu.networks.tables import KINKED, OWN_VJP, RANDOM, ROUNDED, STOPPED

# Largest valid deviations, of rewards relative to the largest, of gradients relative to the norm;
# in float32, and for networks of low precision. Sums over many directions round more often, and
# differences include the curvature.
EXACT, FORWARD, PERTURBED = (1e-5, 3e-2), (1e-4, 1e-1), (2e-2, 1.0)
SIGMA = 0.002
# Node perturbation with each of these options finds the gradient of smooth networks. The last has
# no clean pass, whose random numbers and stopped values the noisy passes could share.
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"output": "delta"},
    {"site": "active"},
    {"inputs": "noisy"},
)
# Forward gradients are skipped for networks of more units than this.
MOST_UNITS = 256


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of one network.

    Attributes:
        kind: "sound"; "refused" with a UserError; "silent": a wrong network or a wrong gradient
            without an error; "crashed" with another error; "invalid": the model itself fails or is
            not finite.
        detail: the property and the deviation, or the error.
        seconds: time of the processor.
        checked: the properties that were compared.
    """

    kind: str
    detail: str = ""
    seconds: float = 0.0
    checked: tuple[str, ...] = ()


def check(recipe: Recipe) -> Outcome:
    """Compare a network's traced rewards, and gradients from credit, with the model's own."""
    start = time.process_time()
    outcome = _check(recipe)
    return dataclasses.replace(outcome, seconds=time.process_time() - start)


def _check(recipe: Recipe) -> Outcome:
    names = recipe.names()
    key = jax.random.key(recipe.seed)
    try:
        model, reward_fn, batch = build(recipe)
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        rest = reseed(rest, key)
        objective = pure_objective(graphdef, reward_fn, has_aux=True)
        if not jax.tree.leaves(params):
            return Outcome("invalid", "no parameters")
        own, gradient = evaluate(gradient_by_jax(objective, recipe.loops), params, rest, batch)
    except Exception as error:
        return Outcome("invalid", _sentence(error))
    gradient = _flat(gradient)
    if not (np.isfinite(own).all() and np.isfinite(gradient).all()):
        return Outcome("invalid", "not finite")

    def traced(params: Any, rest: Any, batch: Any) -> Any:
        network = trace(objective, params, rest, batch)
        sizes.append(sum(math.prod(info.shape) for info in network.sites))
        return network.rewards(params, rest, batch)

    def credited(params: Any, rest: Any, batch: Any) -> Any:
        return grlu.ExactCredit().gradient(objective, params, rest, batch, key)[2]

    def forward(params: Any, rest: Any, batch: Any) -> Any:
        rule = grlu.ForwardGradient(samples=_power_of_two(sizes[0]), noise="orthogonal")
        return rule.gradient(objective, params, rest, batch, key)[2]

    def perturbed(params: Any, rest: Any, batch: Any, sigma: Any) -> Any:
        rule = grlu.NodePerturbation(
            samples=_power_of_two(sizes[0]),
            sigma=sigma,
            noise="orthogonal",
            **VARIANTS[recipe.seed // 4 % (3 if names & (RANDOM | STOPPED) else 4)],
        )
        return rule.gradient(objective, params, rest, batch, key)[2]

    def moved(params: Any, rest: Any, batch: Any) -> Any:
        """Move the parameters along low-rank noise, and along the same noise as matrices."""
        noise = ParameterNoise(objective, params, rest, batch, rank=1)
        direction = noise.draw(key)
        stacked = jax.tree.map(lambda e: e[None], direction)
        whole = noise.restore(noise.weighted(stacked, jnp.ones(1)))
        there = jax.tree.map(lambda p, e: p + 0.1 * e, params, whole)
        return noise.rewards(direction, 0.1, rest, batch), objective(there, rest, batch)[0]

    sizes: list[int] = []
    scale = max(1.0, float(np.abs(own).max()))
    # A zero gradient is zero up to rounding.
    length = float(np.linalg.norm(gradient)) + 0.03 * scale
    faults, checked = [], []

    def compare(name: str, deviation: float, limits: tuple[float, float]) -> None:
        checked.append(name)
        if not deviation < limits[bool(names & ROUNDED)]:
            faults.append(f"{name} off by {deviation:.1e}")

    def distance(
        fn: Callable[..., Any], limits: tuple[float, float], sigma: float | None = None
    ) -> float:
        """Return how far an estimate is from the gradient, in more bits where rounding matters."""
        noise = () if sigma is None else (np.float32(sigma),)
        found = _flat(evaluate(fn, params, rest, batch, *noise))
        deviation = float(np.linalg.norm(found - gradient)) / length
        if deviation < limits[bool(names & ROUNDED)]:
            return deviation
        if names & ROUNDED:  # The model's own gradient is rounded, too.
            wide = in_float32(objective, params, rest, batch)
            exact = evaluate(gradient_by_jax(wide, recipe.loops), params, rest, batch)[1]
            return float(np.linalg.norm(found - _flat(exact))) / length
        with jax.enable_x64(True):
            args = jax.tree.map(_double, (params, rest, batch))
            exact = _flat(evaluate(gradient_by_jax(objective, recipe.loops), *args)[1])
            noise = () if sigma is None else (np.float64(sigma / 100),)
            return float(np.linalg.norm(_flat(evaluate(fn, *args, *noise)) - exact)) / length

    try:
        rewards = _flat(evaluate(traced, params, rest, batch))
        compare("rewards", float(np.abs(rewards - own).max()) / scale, EXACT)
        if not recipe.loops:
            compare("exact credit", distance(credited, EXACT), EXACT)
        few = sizes[0] <= MOST_UNITS
        if few and not names & OWN_VJP:
            compare("forward gradient", distance(forward, FORWARD), FORWARD)
        smooth = not names & (KINKED | ROUNDED | OWN_VJP)
        if few and smooth and (names & STOPPED or recipe.seed % 4 == 0):
            # Strong curvature needs smaller noise, which float32 rounding would dominate.
            deviation = distance(perturbed, PERTURBED, SIGMA)
            compare("perturbation", deviation, PERTURBED)
        if recipe.seed % 4 == 1 and not names & ROUNDED:
            low, whole = map(_flat, evaluate(moved, params, rest, batch))
            compare("low-rank noise", float(np.abs(low - whole).max()) / scale, FORWARD)
    except grlu.UserError as error:
        return Outcome("refused", _sentence(error))
    except Exception as error:
        return Outcome("crashed", _sentence(error))
    return Outcome("silent" if faults else "sound", ", ".join(faults), checked=tuple(checked))


def _power_of_two(least: int) -> int:
    return 2 ** math.ceil(math.log2(max(1, least)))


def gradient_by_jax(objective: Any, loops: bool) -> Callable[..., Any]:
    """Return a function for rewards and the gradient of their mean, forwards if a loop needs it."""

    def own(params: Any, rest: Any, batch: Any) -> Any:
        def mean_reward(params: Any) -> tuple[jax.Array, jax.Array]:
            rewards, _ = objective(params, rest, batch)
            return jnp.mean(rewards), rewards

        if loops:
            gradient, rewards = jax.jacfwd(mean_reward, has_aux=True)(params)
        else:
            gradient, rewards = jax.grad(mean_reward, has_aux=True)(params)
        return rewards, gradient

    return own


def _double(leaf: Any) -> Any:
    return leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def _sentence(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error).strip().split("\n")[0]
    if isinstance(error, grlu.UserError):
        return text
    return f"{type(error).__name__}: {text} ({where.filename.split('/')[-1]}:{where.lineno})"

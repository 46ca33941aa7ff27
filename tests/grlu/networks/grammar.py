"""Grammar: recipes from choices, and models, rewards and batches from recipes.

`recipe(draw)` makes a recipe from `draw(n)`, a choice among the numbers below n in which 0 is the
simplest: hypothesis makes and shrinks recipes as well as `random.Random` makes them.

Every value of a network has the shape (..., T, W): leading axes, steps and features. A step of a
recipe reads earlier values, counted back from the latest, and appends a new one. A step may have
bodies, so that incomplete values cross the boundaries of calls, loops and branches, and
are read on both sides.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# These fill the tables.
import tests.grlu.networks.functions
import tests.grlu.networks.layers
import tests.grlu.networks.rewards  # noqa: F401
from tests.grlu.networks.recipes import EXAMPLES, Recipe, Size, Step
from tests.grlu.networks.regions import AGAIN, Body
from tests.grlu.networks.tables import (
    BATCHED,
    BODIES,
    CHANGES,
    FUNCTIONS,
    LAYERS,
    REGIONS,
    REWARDS,
    ROUNDED,
    Weights,
    wide,
)

Draw = Callable[[int], int]


class Model(nnx.Module):
    """Network of a recipe, from (B, T, W) to the same shape: the sum of its last two values."""

    def __init__(self, recipe: Recipe, w: Weights):
        self.body = Body(recipe.steps, Size(recipe.time, recipe.width, EXAMPLES), w)
        if recipe.extra:
            self.extra = nnx.Param(w.normal(recipe.width))

    def __call__(self, x: jax.Array) -> jax.Array:
        values = self.body(x)
        return values[-1] + values[-2]


def build(recipe: Recipe) -> tuple[Model, Callable[[Any, Any], Any], Any]:
    """Return the model, a reward function with aux, and the batch of a recipe."""
    w = Weights(recipe.seed)
    model = Model(recipe, w)
    shape = (EXAMPLES, recipe.time, recipe.width)
    batch = {
        "x": w.normal(*shape),
        "target": w.normal(*shape),
        "label": w.integers(recipe.width, EXAMPLES),
        "weight": w.normal(EXAMPLES, shift=1.0),
    }
    closed_over = dict(batch)

    def reward_fn(model: Model, batch: Any) -> Any:
        h = model(batch["x"])
        # Every other recipe's reward closes over its labels.
        labels = {**closed_over, "x": batch["x"]} if recipe.seed % 2 else batch
        rewards = REWARDS[recipe.reward](model, h, labels)
        for name in recipe.changes:
            rewards = CHANGES[name](rewards, model, labels)
        aux = jnp.tanh(h * wide(model.extra, h)) if recipe.extra == "aux" else None
        return rewards, aux

    return model, reward_fn, batch


_ALONE = sorted({*FUNCTIONS, *AGAIN})
_WITHOUT_PARAMETERS = {"dropout", "top_k"}


def recipe(draw: Draw) -> Recipe:
    """Make a recipe from choices `draw(n)` among the numbers below n."""
    time, width = (2, 4, 1, 3)[draw(4)], (2, 4, 3)[draw(3)]
    # A layer comes first, so that there is always a parameter.
    steps = (_step(draw, 0, True, layers=True), *_steps(draw, draw(6), 2, True))
    rewards, changes = list(REWARDS), list(CHANGES)
    chosen = (changes[draw(len(changes))] for _ in range((0, 0, 1, 1, 2)[draw(5)]))
    return Recipe(
        steps,
        rewards[draw(len(rewards))],
        # Rewards of low precision come last: later operations would be rounded too.
        tuple(sorted(chosen, key=lambda name: name in ROUNDED)),
        time,
        width,
        draw(1000),
        ("", "", "unused", "aux")[draw(4)],
    )


def _steps(draw: Draw, count: int, depth: int, batched: bool) -> tuple[Step, ...]:
    return tuple(_step(draw, depth, batched) for _ in range(count))


def _step(draw: Draw, depth: int, batched: bool, layers: bool = False) -> Step:
    kinds = [list(LAYERS), _ALONE, list(REGIONS)]
    table = kinds[0 if layers else (0, 1, 0, 1, 2, 2)[draw(6)] if depth else draw(2)]
    names = [n for n in table if batched or n not in BATCHED]
    if layers:
        names = [n for n in names if n not in _WITHOUT_PARAMETERS]
    name = names[draw(len(names))]
    pick = draw(60)
    if name not in REGIONS:
        return Step(name, (_back(draw), _back(draw)), pick)
    reads = tuple(_back(draw) for _ in range(1 + draw(3)))
    inside = batched and name != "example_by_example" and not (name == "branch" and pick % 3 == 2)
    bodies = tuple(_steps(draw, 1 + draw(3), depth - 1, inside) for _ in range(BODIES[name]))
    return Step(name, reads, pick, bodies)


def _back(draw: Draw) -> int:
    """Choose the value to read, mostly a late one."""
    return (0, 0, 1, 0, 2, 3)[draw(6)]

"""Random networks: traced rewards equal the model's, and exact credit equals the gradient."""

import collections

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, Phase, given, settings, strategies
from hypothesis.strategies import DrawFn, composite

from grlu.rules.rule import pure_objective
from tests.grlu.networks import recipes
from tests.grlu.networks.grammar import build, recipe
from tests.grlu.networks.interpreter import evaluate
from tests.grlu.networks.long_run import recipe_of
from tests.grlu.networks.properties import check, gradient_by_jax


@composite
def drawn(draw: DrawFn) -> recipes.Recipe:
    return recipe(lambda n: draw(strategies.integers(0, n - 1)))


def test_random_networks_are_traced_exactly_or_refused():
    """Check a few; `python -m tests.grlu.networks --count 10000` checks more."""
    kinds: collections.Counter[str] = collections.Counter()

    @settings(
        max_examples=40,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn())
    def each(recipe: recipes.Recipe) -> None:
        outcome = check(recipe)
        kinds[outcome.kind] += 1
        assert outcome.kind not in ("silent", "crashed"), f"{outcome.detail}\n{recipe}"

    each()
    assert kinds["sound"] >= 30, kinds


@pytest.mark.parametrize("number", [7, 12])
def test_interpreter_equals_the_compiled_program(number):
    model, reward_fn, batch = build(recipe_of(0, number))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    own = gradient_by_jax(pure_objective(graphdef, reward_fn, has_aux=True), False)
    found = evaluate(own, params, rest, batch)
    expected = jax.jit(own)(params, rest, batch)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_recipe_repr_is_its_code():
    made = recipe_of(0, 3)
    assert eval(repr(made), vars(recipes)) == made

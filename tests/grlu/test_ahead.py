"""Sampling ahead of a loop gives the values that its steps would sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grlu.noise.ahead import drawn_ahead
from grlu.noise.directions import signs

KEY = jax.random.key(3)


def by_number(t, carry):
    """Sample words, floats and signs with keys that depend only on t."""
    total, seen = carry
    key = jax.random.fold_in(KEY, t)
    noise = jax.random.gumbel(key, (5,)) + signs(key, (5,))
    many = signs(jax.random.fold_in(key, 1), (300, 5)).sum(0)
    return total * 0.5 + jnp.tanh(noise * total) + many, seen + 1


def by_carry(t, carry):
    """Sample also with a key that depends on the carry."""
    total, seen = carry
    own = jax.random.fold_in(jax.random.fold_in(KEY, t), seen)
    return total + jax.random.normal(own, (5,)) + jax.random.uniform(KEY, (5,)), seen + t


def run(step, start, *, ahead):
    carry = (start, jnp.zeros((), jnp.int32))
    step = drawn_ahead(step, 8, carry) if ahead else step
    return jax.lax.fori_loop(0, 6, step, carry)


@pytest.mark.parametrize("step", [by_number, by_carry])
@pytest.mark.parametrize("seeds", [None, 3])
def test_presampled_values_equal_those_of_the_steps(step, seeds):
    start = jnp.ones((5,)) if seeds is None else jnp.arange(seeds * 5.0).reshape(seeds, 5)
    results = []
    for ahead in (False, True):

        def whole(start, ahead=ahead):
            return run(step, start, ahead=ahead)

        results.append(jax.jit(whole if seeds is None else jax.vmap(whole))(start))
    for plain, early in zip(*results, strict=True):
        # Different compilation may round sums differently; different random numbers differ more.
        np.testing.assert_allclose(plain, early, atol=1e-5)


def test_loop_contains_no_random_bits():
    def loop(step):
        closed = jax.make_jaxpr(lambda s: run(step, s, ahead=True))(jnp.ones((5,)))
        (eqn,) = [e for e in closed.jaxpr.eqns if e.primitive.name == "scan"]
        return str(eqn.params["jaxpr"])

    assert "random_bits" not in loop(by_number)
    assert loop(by_carry).count("random_bits") == 1

"""Directions: zero mean, unit variance, uncorrelated, and no column for a silent unit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grlu
from grlu.noise import directions, hadamard, signs


def test_signs_are_fair_and_use_every_bit():
    drawn = np.asarray(signs(jax.random.key(0), (1000, 33)))
    assert set(np.unique(drawn)) == {-1.0, 1.0}
    assert abs(drawn.mean()) < 0.02
    assert np.abs(drawn.mean(0)).max() < 0.15


def test_hadamard_rows_are_orthogonal():
    matrix = hadamard(16)
    np.testing.assert_array_equal(matrix @ matrix.T, 16 * np.eye(16))
    with pytest.raises(grlu.UserError, match="power of two"):
        hadamard(12)


@pytest.mark.parametrize("samples", [1, 2, 16, 128])
def test_columns_chosen_by_the_active_units_are_those_of_the_matrix(samples):
    units = 2 * samples + 1
    active = jnp.arange(2 * units).reshape(2, units) % 3 != 0
    (known,) = directions(jax.random.key(0), "orthogonal", samples, [(2, units)], [0])
    (drawn,) = directions(jax.random.key(0), "orthogonal", samples, [(2, units)], [0], [active])
    deal = (np.cumsum(active, axis=1) - 1) % samples
    sign = np.asarray(known[0])  # The matrix's first row is ones.
    expected = hadamard(samples)[:, deal] * sign * np.asarray(active)
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian", "orthogonal"])
def test_directions_are_uncorrelated_over_sites_and_examples(noise):
    def draw(key):
        first, second = directions(key, noise, 4, [(2, 3), (2, 2)], [0, 0])
        return jnp.concatenate([first.reshape(4, -1), second.reshape(4, -1)], axis=1)

    drawn = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), 5000))).reshape(-1, 10)
    np.testing.assert_allclose(drawn.T @ drawn / len(drawn), np.eye(10), atol=0.06)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.05)


def test_orthogonal_units_of_an_example_do_not_interfere_while_there_are_columns():
    first, second = directions(jax.random.key(0), "orthogonal", 8, [(3, 5), (3, 3)], [0, 0])
    for example in range(3):
        both = np.concatenate([first[:, example], second[:, example]], axis=1)
        np.testing.assert_allclose(both.T @ both / 8, np.eye(8), atol=1e-6)


def test_silent_units_take_no_column():
    active = [jnp.array([[True, False, True, False, False, True, False, True]])]
    (drawn,) = directions(jax.random.key(0), "orthogonal", 4, [(1, 8)], [0], active)
    drawn = np.asarray(drawn[:, 0])
    np.testing.assert_array_equal(drawn[:, ~np.asarray(active[0][0])], 0)
    kept = drawn[:, np.asarray(active[0][0])]
    np.testing.assert_allclose(kept.T @ kept / 4, np.eye(4), atol=1e-6)

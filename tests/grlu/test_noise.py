"""Directions: zero mean, unit variance, uncorrelated, and no column for silent units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import grlu
from grlu.influence.rows import Digit, Rows
from grlu.noise.directions import Part, covering, directions, hadamard, signs


def rows(*shape):
    """Return the rows of a site of shape (batch, units)."""
    return Rows(shape, frozenset({Digit(1, shape[0], 0, 1)} if shape[0] > 1 else ()), shape[0])


def test_signs_are_fair_and_use_every_bit():
    drawn = np.asarray(signs(jax.random.key(0), (1000, 33)))
    assert set(np.unique(drawn)) == {-1.0, 1.0}
    assert abs(drawn.mean()) < 0.02
    assert np.abs(drawn.mean(0)).max() < 0.15


@pytest.mark.parametrize("size", [1, 2, 4, 12, 16, 20, 24, 212])
def test_hadamard_rows_are_orthogonal(size):
    matrix = hadamard(size)
    assert set(np.unique(matrix)) <= {-1.0, 1.0}
    np.testing.assert_array_equal(matrix @ matrix.T, size * np.eye(size))


def test_a_size_without_a_matrix_is_refused():
    for size in (3, 6, 10, 18):
        with pytest.raises(grlu.UserError, match="power of two"):
            hadamard(size)


def test_the_smallest_matrix_covers_the_units():
    for units in (1, 3, 5, 9, 33, 210):
        size = covering(units)
        assert units <= size < 1.3 * units + 2
        assert hadamard(size).shape == (size, size)


@pytest.mark.parametrize("samples", [1, 2, 12, 16, 128])
def test_computed_entries_equal_the_matrix(samples):
    units = 2 * samples + 1
    active = jnp.arange(2 * units).reshape(2, units) % 3 != 0
    (known,) = directions(jax.random.key(0), "orthogonal", samples, [rows(2, units)])
    (drawn,) = directions(jax.random.key(0), "orthogonal", samples, [rows(2, units)], [active])
    deal = (np.cumsum(active, axis=1) - 1) % samples
    sign = np.asarray(known[0])  # The matrix's first row is ones.
    expected = hadamard(samples)[:, deal] * sign * np.asarray(active)
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize("noise", ["rademacher", "gaussian", "orthogonal"])
def test_directions_are_uncorrelated_over_sites_and_examples(noise):
    def draw(key):
        first, second = directions(key, noise, 4, [rows(2, 3), rows(2, 2)])
        return jnp.concatenate([first.reshape(4, -1), second.reshape(4, -1)], axis=1)

    drawn = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), 5000))).reshape(-1, 10)
    np.testing.assert_allclose(drawn.T @ drawn / len(drawn), np.eye(10), atol=0.06)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.05)


def test_orthogonal_units_do_not_interfere_with_enough_columns():
    first, second = directions(jax.random.key(0), "orthogonal", 8, [rows(3, 5), rows(3, 3)])
    for example in range(3):
        both = np.concatenate([first[:, example], second[:, example]], axis=1)
        np.testing.assert_allclose(both.T @ both / 8, np.eye(8), atol=1e-6)


def test_silent_units_take_no_column():
    active = [jnp.array([[True, False, True, False, False, True, False, True]])]
    (drawn,) = directions(jax.random.key(0), "orthogonal", 4, [rows(1, 8)], active)
    drawn = np.asarray(drawn[:, 0])
    np.testing.assert_array_equal(drawn[:, ~np.asarray(active[0][0])], 0)
    kept = drawn[:, np.asarray(active[0][0])]
    np.testing.assert_allclose(kept.T @ kept / 4, np.eye(4), atol=1e-6)


@pytest.mark.parametrize("active", [None, [jnp.arange(15).reshape(3, 5) % 3 != 0]])
def test_parts_of_orthogonal_directions_equal_the_full_matrix(active):
    key, site = jax.random.key(0), [rows(3, 5)]
    (whole,) = directions(key, "orthogonal", 8, site, active)
    parts = [directions(key, "orthogonal", 8, site, active, Part(i, 2))[0] for i in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_columns_are_assigned_across_sites_with_shared_rewards():
    """Check two examples with separate units, and units that both share."""
    shared = Rows((3,), frozenset(), 2)
    active = [jnp.array([[True, True, False], [True, False, False]]), jnp.ones(3, bool)]
    first, both = directions(jax.random.key(0), "orthogonal", 8, [rows(2, 3), shared], active)
    for example in range(2):
        own = np.concatenate([first[:, example], both], axis=1)
        kept = own[:, np.any(own != 0, axis=0)]
        np.testing.assert_allclose(kept.T @ kept / 8, np.eye(kept.shape[1]), atol=1e-6)

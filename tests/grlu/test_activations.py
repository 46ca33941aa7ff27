"""Top-k layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
from grlu.activations import kth_largest, winner_count


@pytest.mark.parametrize("k", [1, 2, 17, 50])
def test_the_kth_largest_equals_a_sort(k):
    x = jax.random.normal(jax.random.key(0), (20, 50)) * 10.0 ** jnp.arange(-10, 10)[:, None]
    x = x.at[0, :10].set(0.0).at[1, :10].set(-0.0).at[2, :5].set(jnp.inf).at[2, 5:9].set(-jnp.inf)
    np.testing.assert_array_equal(kth_largest(x, k)[:, 0], jnp.sort(x)[:, -k])


def test_ties_and_extremes_in_one_row_and_in_its_batch():
    generator = np.random.default_rng(0)
    values = np.array([0.0, -0.0, 1, -1, 2.5, np.inf, -np.inf, 3e38, -3e38, 1e-45], np.float32)
    rows = generator.choice(values, (60, 9))
    rows[30:] += generator.normal(size=(30, 9)).astype(np.float32)
    # In the order of their bits: -0 comes before 0, and subnormal numbers differ from 0.
    image = rows.view(np.int32)
    order = np.argsort(np.where(image < 0, image ^ 0x7FFFFFFF, image), axis=1)
    expected = np.take_along_axis(image, order[:, ::-1], axis=1)
    for k in (1, 4, 9):
        one = jax.jit(functools.partial(kth_largest, k=k))
        batch = jax.vmap(one)(rows[:, None])
        for row, in_batch, exact in zip(rows, batch, expected[:, k - 1], strict=True):
            assert np.asarray(one(row)).view(np.int32) == exact
            assert np.asarray(in_batch).view(np.int32) == exact


@pytest.mark.parametrize("units", [2, 8, 9])
def test_few_units_compile(units):
    """Check rows of up to eight units, which XLA once did not finish compiling."""
    z = jax.random.normal(jax.random.key(0), (50, units))
    losers = grlu.TopK(0.5, mode="hard")(z) == 0
    np.testing.assert_array_equal(losers, z < jnp.sort(z)[:, units - units // 2, None])


def test_hard_keeps_the_largest_and_all_ties():
    z = jnp.array([[1.0, 3.0, 2.0, 2.0]])
    np.testing.assert_array_equal(grlu.TopK(0.5, mode="hard")(z), [[0, 3, 2, 2]])
    np.testing.assert_array_equal(grlu.TopK(0.01, mode="hard")(z), [[0, 3, 0, 0]])
    np.testing.assert_array_equal(grlu.TopK(1.0, mode="hard")(z), z)


@pytest.mark.parametrize(
    ("fraction", "k"), [(0.57, 57), (0.29, 29), (0.5, 50), (0.005, 1), (1, 100)]
)
def test_a_decimal_fraction_of_100_units_is_exact(fraction, k):
    z = jax.random.permutation(jax.random.key(0), jnp.arange(1.0, 101.0))[None]
    assert jnp.count_nonzero(grlu.TopK(fraction, mode="hard")(z)) == k


def test_every_fraction_keeps_its_number_of_units():
    for units in range(1, 130):
        for k in range(1, units + 1):
            assert winner_count(k / units, units) == k
    for percent in range(1, 101):
        assert winner_count(float(f"{percent / 100:.2f}"), 100) == percent


def test_gumbel_samples_in_training_and_is_hard_in_evaluation():
    layer = grlu.TopK(0.25, rngs=nnx.Rngs(0))
    z = jnp.broadcast_to(jnp.array([0.1, 0.2, 0.3, 0.4]), (4000, 4))
    winners = layer(z) != 0
    assert (winners.sum(1) == 1).all()
    # One winner of four is sampled with probability softmax(z).
    np.testing.assert_allclose(winners.mean(0), nnx.softmax(z[0]), atol=0.03)
    layer.eval()
    np.testing.assert_allclose(layer(z)[:2], [[0, 0, 0, 0.4]] * 2, rtol=1e-6)


def test_gradient_passes_only_through_winners():
    layer = grlu.TopK(0.5, mode="hard")
    grad = jax.grad(lambda z: layer(z).sum())(jnp.array([1.0, 3.0, 2.0, 0.0]))
    np.testing.assert_array_equal(grad, [0, 1, 1, 0])


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, float("nan")])
def test_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(grlu.UserError, match=r"must lie in \(0, 1\]"):
        grlu.TopK(fraction)


def test_an_unknown_mode_is_refused():
    with pytest.raises(grlu.UserError, match="'gumbel' or 'hard'"):
        grlu.TopK(0.5, mode="soft")

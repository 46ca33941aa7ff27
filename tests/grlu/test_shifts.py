import jax
import jax.numpy as jnp
import optax
import pytest

from grlu.network import trace

stop = jax.lax.stop_gradient
LABELS = jnp.array([0, 1, 2, 0])


def top(z, axis=-1):
    return stop(z.max(axis, keepdims=True))


def normalized(z, maximum, axis=-1):
    e = jnp.exp(z - maximum)
    return (e / e.sum(axis, keepdims=True))[:, 1]


def cuts(reward):
    """Return the indices of the stops that the reward depends on."""
    weights = jax.random.normal(jax.random.key(1), (3, 5))
    x = jax.random.normal(jax.random.key(0), (4, 3))
    assert "stop_gradient" in str(jax.make_jaxpr(reward)(x @ weights))
    return trace(lambda w, _, x: (reward(x @ w), None), weights, None, x).program.stops


@pytest.mark.parametrize(
    "reward",
    [
        lambda z: jax.nn.log_softmax(z)[jnp.arange(4), LABELS],
        lambda z: jnp.take_along_axis(jax.nn.log_softmax(z), LABELS[:, None], -1)[:, 0],
        lambda z: -optax.softmax_cross_entropy_with_integer_labels(z, LABELS),
        lambda z: -optax.softmax_cross_entropy(z, jax.nn.one_hot(LABELS, 5)),
        lambda z: -optax.softmax_cross_entropy(z, jax.nn.softmax(z)),
        lambda z: jax.nn.logsumexp(z, axis=-1),
        lambda z: jnp.full(4, jax.nn.logsumexp(z)),
        lambda z: normalized(z, top(z)),
        lambda z: normalized(z, top(z, axis=None)),
    ],
)
def test_a_maximum_that_is_subtracted_and_restored_cuts_nothing(reward):
    assert cuts(reward) == ()


@pytest.mark.parametrize(
    "reward",
    [
        lambda z: (z / top(z))[:, 0],
        lambda z: (z - top(z))[:, 0],
        lambda z: jnp.tanh(z - top(z))[:, 0],
        lambda z: (z - top(z)).astype(jnp.int32).astype(jnp.float32)[:, 0] + z[:, 0],
        # Normalised over a different axis than the maximum.
        lambda z: normalized(z, top(z), axis=0),
        lambda z: normalized(z, 2 * top(z)) + jnp.exp(top(z))[:, 0],
        # In a loop, every output of a step counts.
        lambda z: jax.lax.map(lambda row: row[0] / stop(row.max()), z),
    ],
)
def test_a_maximum_that_the_reward_depends_on_is_a_cut(reward):
    assert cuts(reward)

"""The sparse network equals a dense one with masks, and its credit is exact with few pairs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models
from grlu.network import trace
from grlu.rules.rule import pure_objective
from models.sparse_mlp import Winners, _of_all, _of_groups

HIDDEN, K, OUTPUTS = (40, 32, 40), 4, 3


def build(among="all", mode="hard", hidden=HIDDEN):
    options = {"winners": (K,), "among": among, "winners_mode": mode}
    make = functools.partial(models.SparseMLP, (6,), OUTPUTS, hidden=hidden, **options)
    return nnx.jit(lambda: make(rngs=nnx.Rngs(0)))()


def reward(model, batch):
    x, label = batch
    return jnp.take_along_axis(jax.nn.log_softmax(model(x)), label[:, None], axis=1)[:, 0]


@pytest.fixture(scope="module")
def batch():
    x = np.random.default_rng(1).standard_normal((5, 6), np.float32)
    return jnp.asarray(x), jnp.array([0, 1, 2, 0, 1])


def masked(model, x):
    """Return the logits of the same network, with all units and 0 for the losers."""
    logits, code = model.bias[...][None], x
    layers = [(model.first.kernel[...], model.first.bias[...])]
    layers += [(layer.kernel[...], layer.bias[...]) for layer in model.layers]
    for (kernel, bias), readout in zip(layers, model.readouts, strict=True):
        z = code @ kernel + bias[None]
        threshold = jax.lax.top_k(jax.lax.stop_gradient(z), K)[0][:, -1:]
        code = jnp.where(z >= threshold, z, 0.0)
        square = jnp.sum(code**2, axis=1, keepdims=True)
        code = code * jax.lax.rsqrt(square / z.shape[1] + 1e-12)
        logits = logits + code @ readout[...] / jnp.sqrt(z.shape[1])
    return logits


def test_it_equals_a_dense_network_with_masks(batch):
    model = build()
    loss = nnx.value_and_grad(lambda m: jnp.sum(reward(m, batch)))
    dense = nnx.value_and_grad(lambda m: jnp.sum(reward(lambda x: masked(m, x), batch)))

    @nnx.jit
    def both(model):
        return model(batch[0]), masked(model, batch[0]), loss(model), dense(model)

    logits, dense_logits, (value, grads), (expected, dense_grads) = both(model)
    np.testing.assert_allclose(logits, dense_logits, atol=1e-5)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for g, e in zip(jax.tree.leaves(grads), jax.tree.leaves(dense_grads), strict=True):
        np.testing.assert_allclose(g, e, atol=1e-5)


@pytest.mark.parametrize("units", [40, 200])
def test_the_winners_are_the_largest(units):
    z = jax.random.normal(jax.random.key(0), (7, units))
    expected = jax.lax.top_k(z, K)[1]
    np.testing.assert_array_equal(jnp.sort(_of_all(z, K)), jnp.sort(expected))
    groups = np.asarray(_of_groups(z, K))
    for row, found in zip(np.asarray(z), groups, strict=True):
        assert [row[c::K].argmax() * K + c for c in range(K)] == list(found)


def test_a_batch_of_one_equals_the_same_example_in_a_batch(batch):
    model = build()
    passed = nnx.jit(lambda model, x: model(x))
    together = passed(model, batch[0])
    for i in range(len(together)):
        alone = passed(model, batch[0][i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


def test_sampled_winners_are_those_of_training_only():
    z = jnp.zeros((1, 40))
    winners = Winners(K, "all", True, rngs=nnx.Rngs(0))
    chosen = nnx.jit(lambda winners, z: winners(z))
    drawn = {tuple(np.sort(chosen(winners, z)[0])) for _ in range(5)}
    assert len(drawn) > 1
    winners.eval()
    assert len({tuple(np.sort(chosen(winners, z)[0])) for _ in range(5)}) == 1


@pytest.mark.parametrize(
    ("among", "mode"), [("all", "hard"), ("all", "gumbel"), ("groups", "hard")]
)
def test_credit_is_exact_once_the_pairs_cover_the_active_units(batch, among, mode):
    model = build(among, mode)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    sites = trace(pure_objective(graphdef, reward), params, rest, batch).sites
    shapes = [(5, K)] * len(HIDDEN) + [(5, OUTPUTS)]
    assert [info.shape for info in sites if info.live] == shapes
    units = len(HIDDEN) * K + OUTPUTS

    def estimate(rule):
        found = nnx.jit(rule(reward))(model, batch, jax.random.key(0))[1]
        return np.concatenate([np.ravel(g) for g in jax.tree.leaves(found)])

    def cosine(samples):
        found = estimate(grlu.NodePerturbation(samples, 1e-3, noise="orthogonal"))
        return found @ exact / np.linalg.norm(found) / np.linalg.norm(exact)

    exact = estimate(grlu.Backprop())
    assert cosine("auto") > 0.9999
    assert cosine(16) > 0.9999
    assert 16 >= units > 8
    assert cosine(8) < 0.98


def test_feedback_that_needs_fixed_units_is_refused(batch):
    model = build()
    with pytest.raises(grlu.UserError, match="needs dense layers after the first"):
        grlu.FeedbackAlignment()(reward)(model, batch, jax.random.key(0))
    with pytest.raises(grlu.UserError, match="needs dense layers after the first"):
        grlu.FeedbackAlignment(direct=True)(reward)(model, batch, jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"winners": (4, 4)}, "one number of winners, or one per hidden layer"),
        ({"winners": (50,)}, "must be 1 to its 40 units, got 50"),
        ({"winners": (7,), "among": "groups"}, "divide them into groups, got 7"),
        ({"hidden": ()}, "for 0 layers"),
    ],
)
def test_wrong_sizes_are_refused(options, message):
    with pytest.raises(grlu.UserError, match=message):
        models.SparseMLP((6,), 3, **{"hidden": HIDDEN, **options}, rngs=nnx.Rngs(0))

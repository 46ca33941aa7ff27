"""Baseline of the speed table against the library's published rule, on the same noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models
from benchmarks.baselines import original
from grlu.influence.rows import Rows
from grlu.noise.directions import directions


def published_reward(model, batch):
    chosen = jnp.take_along_axis(nnx.softmax(model(batch[0])), batch[1][:, None], axis=1)
    return jnp.log(chosen + 1e-10)[:, 0]


@pytest.mark.parametrize(
    ("options", "winners", "samples"),
    [({"activation": "relu"}, None, 1), ({"activation": "topk", "topk_mode": "hard"}, 4, 6)],
)
def test_one_step_equals_the_published_rule(options, winners, samples):
    model = models.MLP((12,), 4, hidden=(8, 8), rngs=nnx.Rngs(0), **options)
    image = jnp.asarray(np.random.default_rng(1).standard_normal(12, np.float32))
    label = jnp.array(2)
    sigma, rate, key = 0.1, 20.0, jax.random.key(2)
    rule = grlu.NodePerturbation.published(samples, sigma)
    estimate = nnx.jit(rule(published_reward))
    _, grads = estimate(model, (image[None], label[None]), key)

    noise_key = jax.random.split(key)[1]
    rows = [Rows(shape, frozenset(), 1) for shape in [(1, 8), (1, 8), (1, 4)]]
    drawn = jax.jit(lambda key: directions(key, "gaussian", samples, rows))(noise_key)
    noises = [sigma * xi[:, 0] for xi in drawn]
    still = [jnp.zeros((samples, 8))] * 2
    before = [(layer.kernel[...], layer.bias[...]) for layer in model.layers]
    update = jax.jit(functools.partial(original.update, learning_rate=rate, winners=winners))
    after, _ = update(before, image, label, noises, still)

    for i, (weights, biases) in enumerate(after):
        kernel, bias = (before[i][j] - rate * grads["layers"][i][n][...] for j, n in NAMES)
        assert jnp.abs(weights - before[i][0]).max() > 1e-2
        np.testing.assert_allclose(weights, kernel, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(biases, bias, rtol=1e-5, atol=1e-5)


NAMES = ((0, "kernel"), (1, "bias"))


def test_winners_are_sampled_and_noise_is_scaled():
    """Weights do not move without noise, and depend on the key with it."""
    params = original.init(jax.random.key(0), (12, 10, 4))
    image, label = np.ones(12, np.float32).cumsum(), np.int32(1)

    def stepped(seed, sigma):
        copy = jax.tree.map(jnp.copy, params)
        key = jax.random.key(seed)
        after, _, _ = original.step(copy, key, image, label, 1.0, sigma, samples=4, winners=5)
        return after[0][0]

    np.testing.assert_array_equal(stepped(1, 0.0), params[0][0])
    assert jnp.any(stepped(1, 0.1) != stepped(2, 0.1))
    np.testing.assert_array_equal(stepped(1, 0.1), stepped(1, 0.1))


@pytest.mark.parametrize("rule", ["perturbation", "backprop"])
def test_the_baseline_learns(rule):
    """Two classes that differ by a sign: the reward rises above chance."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 400).astype(np.int32)
    images = generator.normal(size=(400, 8)).astype(np.float32)
    images[:, 0] = 3 * (2 * labels - 1)
    params = original.init(jax.random.key(0), (8, 16, 2))
    if rule == "backprop":
        params = original.train_by_backprop(params, images, labels, learning_rate=0.02)
    else:
        options = {"learning_rate": 1.0, "sigma": 0.1, "samples": 8, "winners": 8}
        params = original.train(params, images, labels, key=jax.random.key(1), **options)
    zeros = [jnp.zeros((400, 16)), jnp.zeros((400, 2))]
    logits, _ = original.forward(params, images, zeros, [zeros[0]], None)
    assert (jnp.argmax(logits, axis=1) == labels).mean() > 0.9

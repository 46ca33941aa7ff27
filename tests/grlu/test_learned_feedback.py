"""Learned feedback: unbiased for any weights, less noisy with trained weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import grlu
import models


@pytest.fixture
def batch():
    x = np.random.default_rng(1).standard_normal((6, 12), np.float32)
    return jnp.asarray(x), jnp.array([0, 1, 2, 3, 4, 0])


def log_likelihood(model, batch):
    logits = nnx.log_softmax(model(batch[0]))
    return jnp.take_along_axis(logits, batch[1][:, None], axis=1)[:, 0]


def classifier():
    model = models.MLP((12,), 5, hidden=(32,), rngs=nnx.Rngs(0))
    grlu.add_feedback(model, 5)
    return model


def gradient(rule, model, batch, reward_fn=log_likelihood):
    return nnx.jit(rule(reward_fn))(model, batch, jax.random.key(0))[1]


def rule(samples, **options):
    options = {"output": "delta", "feedback": 1.0} | options
    return grlu.NodePerturbation(samples, 0.02, **options)


def hidden_cosine(rule, model, batch, keys=20):
    """Return the mean cosine between the first layer's estimate and the exact gradient."""
    found = [
        grlu.alignment(rule, log_likelihood, model, batch, jax.random.key(i)).parameters
        for i in range(keys)
    ]
    return np.mean([f["layers.0.kernel"][0] for f in found])


@pytest.mark.parametrize("site", ["pre", "active"])
def test_wrong_feedback_leaves_the_mean_of_the_estimate(site, batch):
    model = classifier()
    for layer in model.layers:
        layer.feedback[...] = 0.1 * jax.random.normal(jax.random.key(3), layer.feedback.shape)
    assert hidden_cosine(rule(4096, site=site), model, batch, keys=1) > 0.99


@pytest.mark.parametrize(
    "options",
    [
        {"samples": 4},
        {"samples": 4, "site": "active", "noise": "orthogonal"},
        {"samples": 8, "output": "perturb", "layers": "apart", "noise": "orthogonal"},
    ],
)
def test_feedback_learns_to_predict_the_credit(options, batch):
    model, one = classifier(), rule(**options)
    before = hidden_cosine(one, model, batch)
    estimate = one(log_likelihood)
    only = nnx.PathContains("feedback")
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=only)

    @nnx.jit
    def learn(model, optimizer, key):
        _, grads = estimate(model, batch, key)
        optimizer.update(model, nnx.filter_state(grads, only))

    for i in range(1000):
        learn(model, optimizer, jax.random.key(i))
    assert hidden_cosine(one, model, batch) > before + 0.2


def test_feedback_weights_are_zero_at_first_and_change_nothing(batch):
    plain = models.MLP((12,), 5, hidden=(32,), rngs=nnx.Rngs(0))
    with_feedback = classifier()
    np.testing.assert_array_equal(plain(batch[0]), with_feedback(batch[0]))
    expected = gradient(rule(8, feedback=None), plain, batch)
    found = gradient(rule(8), with_feedback, batch)
    for i in range(2):
        np.testing.assert_allclose(
            found["layers"][i]["kernel"][...], expected["layers"][i]["kernel"][...], atol=1e-6
        )


def test_layers_that_are_not_dense_get_no_feedback(batch):
    class Convolutional(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(1, 4, (3,), rngs=rngs)
            self.hidden = nnx.Linear(48, 8, rngs=rngs)
            self.out = nnx.Linear(8, 5, rngs=rngs)

        def __call__(self, x):
            h = nnx.relu(self.conv(x[..., None]))
            return self.out(nnx.relu(self.hidden(h.reshape(len(x), -1))))

    model = Convolutional(nnx.Rngs(0))
    grlu.add_feedback(model, 5)
    grads = gradient(rule(64, noise="orthogonal"), model, batch)
    assert jnp.any(grads["conv"]["kernel"][...])
    assert jnp.any(grads["hidden"]["feedback"][...])
    assert not jnp.any(grads["out"]["feedback"][...])


def test_unused_layer_does_not_change(batch):
    class Idle(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.idle = nnx.Linear(12, 8, rngs=rngs), nnx.Linear(12, 8, rngs=rngs)
            self.out = nnx.Linear(8, 5, rngs=rngs)

        def __call__(self, x):
            jnp.tanh(self.idle(x))
            return self.out(nnx.relu(self.hidden(x)))

    model = Idle(nnx.Rngs(0))
    grlu.add_feedback(model, 5)
    grads = gradient(rule(16), model, batch)
    assert jnp.any(grads["hidden"]["feedback"][...])
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(grads["idle"]))


def test_a_model_without_feedback_weights_is_refused(batch):
    model = models.MLP((12,), 5, hidden=(32,), rngs=nnx.Rngs(0))
    with pytest.raises(grlu.UserError, match=r"call grlu\.add_feedback\(model, outputs\) first"):
        gradient(rule(4), model, batch)


def test_an_output_that_is_not_one_row_of_units_is_refused():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    grlu.add_feedback(model, 4)
    with pytest.raises(grlu.UserError, match="feedback needs one output layer"):
        gradient(rule(4), model, jnp.ones((2, 5, 3)), lambda m, x: m(x).sum((1, 2)))

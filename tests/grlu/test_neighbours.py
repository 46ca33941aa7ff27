"""Rules related to node perturbation, each against its oracle or limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models


def log_likelihood(model, batch):
    logits = nnx.log_softmax(model(batch[0]))
    return jnp.take_along_axis(logits, batch[1][:, None], axis=1)[:, 0]


@pytest.fixture
def batch():
    x = np.random.default_rng(1).standard_normal((6, 12), np.float32)
    return jnp.asarray(x), jnp.array([0, 1, 2, 3, 4, 0])


@pytest.fixture
def model():
    return models.MLP((12,), 5, hidden=(16, 16), activation="tanh", rngs=nnx.Rngs(0))


def grads_of(rule, model, batch, key=2):
    return nnx.jit(rule(log_likelihood))(model, batch, jax.random.key(key))[1]


@pytest.mark.parametrize(
    "rule",
    [
        grlu.ForwardGradient(512, noise="orthogonal"),
        grlu.ForwardGradient(20_000, of="weight"),
        grlu.WeightPerturbation(20_000, 1e-2),
        grlu.EvolutionStrategy(40_000, 1e-2, shaping="none", rank=2),
    ],
)
def test_rules_approach_the_gradient(rule, model, batch):
    found = grlu.alignment(rule, log_likelihood, model, batch, jax.random.key(3))
    assert found.cosine > 0.97, str(found)
    assert abs(found.norm_ratio - 1) < 0.1, str(found)


def test_activity_gradient_is_node_perturbation_without_curvature(model, batch):
    """Compare both at a small sigma, along the same directions."""
    forward = grads_of(grlu.ForwardGradient(8), model, batch)
    perturbed = grads_of(grlu.NodePerturbation(8, 1e-2), model, batch)
    for a, b in zip(jax.tree.leaves(forward), jax.tree.leaves(perturbed), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=2e-3)


def oracle_feedback(model, batch, seed, direct):
    """Compute feedback alignment of a tanh network without layer norm, layer by layer."""
    layers = [(np.asarray(m.kernel[...]), np.asarray(m.bias[...])) for m in model.layers]
    hs, h = [], np.asarray(batch[0])
    for i, (w, b) in enumerate(layers):
        hs.append(h)
        z = h @ w + b
        h = np.tanh(z) if i < len(layers) - 1 else z
    p = np.exp(h) / np.exp(h).sum(1, keepdims=True)
    delta = (np.eye(5)[np.asarray(batch[1])] - p) / len(p)

    def feedback(i, fan_in, units):
        key = jax.random.fold_in(jax.random.key(seed), i)
        return np.asarray(jax.random.normal(key, (fan_in, units))) / np.sqrt(fan_in)

    credits, credit = [None] * len(layers), delta
    credits[-1] = delta
    for i in range(len(layers) - 2, -1, -1):
        units = layers[i][0].shape[1]
        if direct:
            back = delta @ feedback(i, 5, units)
        else:
            back = credit @ feedback(i + 1, units, layers[i + 1][0].shape[1]).T
        credit = credits[i] = back * (1 - hs[i + 1] ** 2)
    return [(h.T @ c, c.sum(0)) for h, c in zip(hs, credits, strict=True)]


@pytest.mark.parametrize("direct", [False, True])
def test_feedback_alignment_equals_its_oracle(direct, batch):
    model = models.MLP(
        (12,), 5, hidden=(16, 8), activation="tanh", layer_norm=False, rngs=nnx.Rngs(0)
    )
    grads = grads_of(grlu.FeedbackAlignment(direct=direct, seed=7), model, batch)
    for i, (kernel, bias) in enumerate(oracle_feedback(model, batch, 7, direct)):
        np.testing.assert_allclose(-grads["layers"][i]["kernel"][...], kernel, atol=1e-5)
        np.testing.assert_allclose(-grads["layers"][i]["bias"][...], bias, atol=1e-5)


def test_feedback_through_a_layer_that_is_not_dense_is_refused(batch):
    model = nnx.Sequential(nnx.Linear(12, 5, rngs=nnx.Rngs(0)), nnx.LayerNorm(5, rngs=nnx.Rngs(0)))
    with pytest.raises(grlu.UserError, match="needs dense layers"):
        grads_of(grlu.FeedbackAlignment(), model, batch)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: grlu.WeightPerturbation(samples=0), "samples must be"),
        (lambda: grlu.WeightPerturbation(sigma=-1.0), "sigma must be"),
        (lambda: grlu.ForwardGradient(samples=0), "samples must be"),
        (lambda: grlu.ForwardGradient(of="bias"), "'activity' or 'weight'"),
        (lambda: grlu.ForwardGradient(noise="pink"), "noise must be one of"),
        (lambda: grlu.ForwardGradient(3, noise="orthogonal"), "power of two"),
    ],
)
def test_wrong_options_are_refused(make, sentence):
    with pytest.raises(grlu.UserError, match=sentence):
        make()

"""Micro-batches: splitting a batch changes only rounding, under every rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models
from grlu.micro_batches import in_parts
from grlu.rules.rule import pure_objective

RULES = {
    "backprop": grlu.Backprop(),
    "exact credit": grlu.ExactCredit(),
    "feedback alignment": grlu.FeedbackAlignment(),
    "direct feedback alignment": grlu.FeedbackAlignment(direct=True),
    "forward gradient, orthogonal": grlu.ForwardGradient(8, noise="orthogonal"),
    "forward gradient of weights": grlu.ForwardGradient(8, of="weight"),
    "weight perturbation": grlu.WeightPerturbation(8),
    "evolution": grlu.EvolutionStrategy(16),
    "evolution, rank 1, unshaped": grlu.EvolutionStrategy(16, rank=1, shaping="none"),
    "grlu": grlu.NodePerturbation(8, 0.1),
    "grlu, gaussian, active, delta, chunks": grlu.NodePerturbation(
        8, 0.1, noise="gaussian", site="active", output="delta", chunk=2
    ),
    "grlu, orthogonal, post, one-sided": grlu.NodePerturbation(
        8, 0.1, noise="orthogonal", site="post", antithetic=False
    ),
    "grlu, apart, softmax noise": grlu.NodePerturbation(
        8, 0.1, layers="apart", output_noise="softmax"
    ),
    "grlu, least squares": grlu.NodePerturbation(8, 0.1, ridge=0.1),
    "grlu, published": grlu.NodePerturbation.published(8, 0.1),
}


def log_likelihood(model, batch):
    logits = nnx.log_softmax(model(batch["x"]))
    rewards = jnp.take_along_axis(logits, batch["y"][:, None], axis=1)[:, 0]
    decay = sum(jnp.sum(p**2) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    # A mean with as many entries as one of three parts has examples.
    means = {"mean": rewards.mean(), "of_units": logits[:, :4].mean(0)}
    return rewards - 1e-3 * decay, {"logits": logits, **means}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_parts_equal_the_full_batch(rule):
    model = models.MLP((12,), 5, hidden=(8, 8), rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    objective = pure_objective(graphdef, log_likelihood, has_aux=True)
    x = np.random.default_rng(1).standard_normal((12, 12), np.float32)
    batch = {"x": x, "y": np.arange(12) % 5, "shared": np.ones((), np.float32)}

    @jax.jit
    def estimates(params, batch, key):
        return [
            rule.estimate(in_parts(objective, parts), params, rest, batch, key) for parts in (1, 3)
        ]

    whole, split = estimates(params, batch, jax.random.key(2))
    np.testing.assert_allclose(whole[0], split[0], rtol=1e-5)
    np.testing.assert_allclose(whole[1][0]["logits"], split[1][0]["logits"], rtol=1e-5, atol=1e-6)
    for mean in ("mean", "of_units"):
        np.testing.assert_allclose(whole[1][0][mean], split[1][0][mean], rtol=1e-5)
    one, two = (
        np.concatenate([np.ravel(g) for g in jax.tree.leaves(found[2])]) for found in (whole, split)
    )
    assert np.linalg.norm(one - two) < 1e-4 * np.linalg.norm(one)


@pytest.mark.parametrize(
    "rule",
    [grlu.Backprop(), grlu.EvolutionStrategy(4, chunk=2), grlu.WeightPerturbation(8)],
    ids=["backprop", "evolution", "weight perturbation"],
)
def test_parts_save_memory(rule):
    model = models.MLP((8,), 4, hidden=(64, 64), rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    objective = pure_objective(graphdef, log_likelihood, has_aux=True)
    batch = {"x": jnp.ones((512, 8)), "y": jnp.zeros(512, jnp.int32)}

    def temporary(parts):
        def estimate(params, key):
            return rule.estimate(in_parts(objective, parts), params, rest, batch, key)[2]

        compiled = jax.jit(estimate).lower(params, jax.random.key(0)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(8) < 0.8 * temporary(1)


def test_each_part_samples_its_own_dropout():
    model = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    objective = pure_objective(graphdef, lambda m, x: m(x).sum(-1))
    rewards, _ = in_parts(objective, 2)(params, rest, jnp.ones((2, 64)))
    assert rewards[0] != rewards[1]


def test_batches_and_models_that_cannot_be_split_are_refused():
    linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    norm = nnx.Sequential(linear, nnx.BatchNorm(2, rngs=nnx.Rngs(0)))
    for model, rows, sentence in [
        (linear, 5, "not a multiple of 2"),
        (norm, 4, "batch statistics"),
    ]:
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        objective = pure_objective(graphdef, lambda m, x: m(x).sum(-1))
        with pytest.raises(grlu.UserError, match=sentence):
            in_parts(objective, 2)(params, rest, jnp.ones((rows, 3)))

"""Perturbation rules on language models, with tied weights and attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import models
from grlu.network import parameter_names

ATTENTIONS = pytest.mark.parametrize("attention", ["multi_head", "latent"])


def make(attention, block=6, **options):
    sizes = {"layers": 1, "heads": 2, "width": 8, "attention": attention, "value_head": True}
    initial = nnx.jit(lambda: models.GPT((block,), 5, **sizes | options, rngs=nnx.Rngs(0)))
    return initial()


def sharpened(attention, **options):
    """Return a model with larger weights: initially attention has little effect."""
    model = make(attention, **options)
    params = jax.tree.map(np.asarray, nnx.state(model, nnx.Param))
    larger = jax.tree.map(lambda p: 0.2 * p / p.std() if p.ndim > 1 else p + 0.1, params)
    nnx.update(model, jax.tree.map(jnp.asarray, larger))
    return model


def mean_log_prob(model, batch):
    tokens = batch["tokens"]
    logits, values = model.with_values(tokens[:, :-1])
    chosen = jnp.take_along_axis(nnx.log_softmax(logits), tokens[:, 1:, None], axis=-1)
    return chosen.mean(axis=(1, 2)) - 0.1 * (values**2).mean(1)


@pytest.fixture
def batch():
    return {"tokens": jax.random.randint(jax.random.key(3), (6, 7), 0, 5)}


@ATTENTIONS
def test_the_local_update_of_exact_credit_is_the_gradient(attention, batch):
    model, key = sharpened(attention), jax.random.key(2)

    @nnx.jit
    def both(model, batch, key):
        rules = grlu.ExactCredit(), grlu.Backprop()
        return [rule(mean_log_prob)(model, batch, key)[1] for rule in rules]

    local, exact = (map(np.asarray, jax.tree.leaves(g)) for g in both(model, batch, key))
    for a, b in zip(local, exact, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * max(1.0, np.abs(b).max()))


@pytest.mark.slow
@ATTENTIONS
def test_orthogonal_perturbation_finds_the_gradient_of_the_tied_embedding(attention, batch):
    """Use few units, so that all their directions can be orthogonal."""
    own = {"latent": 4, "query_latent": 4} if attention == "latent" else {}
    model = sharpened(attention, block=3, width=4, **own)
    rule = grlu.NodePerturbation(samples=256, sigma=0.01, noise="orthogonal")
    few = {"tokens": batch["tokens"][:, :4]}
    found = grlu.alignment(rule, mean_log_prob, model, few, jax.random.key(3))
    assert found.cosine > 0.99, str(found)
    cosine, ratio = found.parameters["tokens.embedding"]
    assert cosine > 0.98, str(found)
    assert 0.9 < ratio < 1.1, str(found)


@ATTENTIONS
def test_low_rank_noise_is_on_every_kernel(attention, batch, low_rank_noise):
    model = sharpened(attention)
    names = parameter_names(nnx.state(model, nnx.Param))
    found = low_rank_noise(model, mean_log_prob, batch, rtol=1e-4)
    assert found == {name for name in names if "kernel" in name}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "rule", "rate"),
    [
        ("latent", grlu.NodePerturbation(samples=16, sigma=0.02, noise="orthogonal"), 0.02),
        ("multi_head", grlu.EvolutionStrategy(population=32, sigma=0.05, rank=1), 0.05),
    ],
)
def test_a_tiny_text_is_learned(attention, rule, rate, batch):
    import optax

    model = make(attention)
    optimizer = nnx.Optimizer(model, optax.adam(rate), wrt=nnx.Param)
    estimate = rule(mean_log_prob)

    @nnx.jit
    def step(model, optimizer, key):
        reward, grads = estimate(model, batch, key)
        optimizer.update(model, grads)
        return reward

    rewards = [float(step(model, optimizer, jax.random.key(i))) for i in range(40)]
    assert np.mean(rewards[:3]) < -1.5
    assert np.mean(rewards[-10:]) > -1.45

"""Autoencoders: shapes, codes, tied weights, corruption, and training by any rule."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import grlu
import models
from trainers.objectives.registry import Reconstruction


@pytest.mark.parametrize(
    ("hidden", "tied"), [((), False), ((), True), ((9,), False), ((9, 7), False), ((9, 7), True)]
)
def test_dense_autoencoder_encodes_and_decodes(hidden, tied):
    options = {"hidden": hidden, "latent": 5, "tied": tied}
    model = nnx.jit(lambda: models.Autoencoder((12,), 10, **options, rngs=nnx.Rngs(0)))()
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 12), np.float32))

    @nnx.jit
    def every(model, x):
        return model.encode(x), model.decode(model.encode(x)), model(x)

    code, decoded, found = every(model, x)
    assert code.shape == (3, 5)
    assert decoded.shape == (3, 12)
    np.testing.assert_array_equal(found, decoded)
    sizes = (12, *hidden, 5)
    kernels = sum(a * b for a, b in itertools.pairwise(sizes))
    expected = kernels * (1 if tied else 2) + sum(sizes) + sum(hidden)
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) == expected


def test_tied_linear_autoencoder_matches_its_formula():
    model = models.Autoencoder((12,), 10, hidden=(), latent=5, tied=True, rngs=nnx.Rngs(0))
    model.biases[0][...] = jnp.arange(12.0)
    w, x = np.asarray(model.encoder[0].kernel[...]), np.ones((2, 12), np.float32)
    np.testing.assert_allclose(model(x), x @ w @ w.T + np.arange(12), rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (7, 5, 3), (1, 1, 2)])
@pytest.mark.parametrize("channels", [(), (3,), (3, 4)])
def test_conv_autoencoder_restores_the_image_shape(shape, channels):
    def found(x):
        model = models.ConvAutoencoder(shape, 10, channels=channels, latent=5, rngs=nnx.Rngs(0))
        return model.encode(x).shape, model(x).shape

    shapes = []
    x = jax.ShapeDtypeStruct((3, *shape), np.float32)
    jax.eval_shape(lambda x: shapes.extend(found(x)), x)
    assert shapes == [(3, 5), (3, *shape)]


@pytest.mark.parametrize(
    ("name", "shape"), [("autoencoder", (16,)), ("conv_autoencoder", (4, 4, 1))]
)
def test_codes_are_linear_positive_or_sparse(name, shape):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((50, *shape), np.float32))

    def code(**options):
        return models.MODELS[name](shape, 10, latent=8, rngs=nnx.Rngs(0), **options).encode(x)

    @jax.jit
    def codes():
        return code(), code(latent_activation="relu"), code(latent_activation="topk", topk=0.25)

    linear, positive, sparse = map(np.asarray, codes())
    np.testing.assert_array_equal(positive, np.maximum(linear, 0))
    assert ((sparse != 0).sum(1) == 2).all()
    np.testing.assert_array_equal(sparse, np.where(sparse != 0, linear, 0))


def test_input_is_corrupted_only_in_training_and_the_code_never():
    model = models.Autoencoder((400,), 10, denoise=0.3, rngs=nnx.Rngs(0))
    x = jnp.ones((50, 400))

    @nnx.jit
    def twice(model, x):
        return [(model.corrupt(x), model.encode(x), model(x)) for _ in range(2)]

    (masked, code, found), (masked_again, code_again, found_again) = twice(model, x)
    assert set(np.unique(masked)) == {0.0, 1.0}
    assert np.mean(masked) == pytest.approx(0.7, abs=0.02)
    assert (masked != masked_again).any()
    np.testing.assert_array_equal(code, code_again)
    assert (found != found_again).any()
    model.eval()
    np.testing.assert_array_equal(
        *nnx.jit(lambda model, x: (model(x), model.decode(model.encode(x))))(model, x)
    )


@pytest.mark.parametrize(
    ("name", "shape", "options", "sentence"),
    [
        ("autoencoder", (4, 4, 1), {}, "set dataset.flatten=true"),
        ("autoencoder", (4,), {"hidden": (0,)}, "positive layer sizes"),
        ("autoencoder", (4,), {"latent": 0}, "latent must be a positive"),
        ("autoencoder", (4,), {"denoise": 1.0}, r"denoise must lie in \[0, 1\)"),
        ("autoencoder", (4,), {"latent_activation": "tanh"}, "latent_activation must be"),
        ("autoencoder", (4,), {"latent_activation": "topk", "topk": 2}, r"must lie in \(0, 1\]"),
        ("conv_autoencoder", (4,), {}, "set dataset.flatten=false"),
        ("conv_autoencoder", (4, 4, 1), {"channels": (0,)}, "positive channels"),
        ("conv_autoencoder", (4, 4, 1), {"latent": -1}, "latent must be a positive"),
    ],
)
def test_wrong_sizes_are_refused(name, shape, options, sentence):
    with pytest.raises(grlu.UserError, match=sentence):
        models.MODELS[name](shape, 10, rngs=nnx.Rngs(0), **options)


TIED = "autoencoder", (16,), {"hidden": (12,), "tied": True, "denoise": 0.1}
SPARSE = "autoencoder", (16,), {"hidden": (), "latent_activation": "topk", "topk": 0.5}
CONVOLUTIONAL = "conv_autoencoder", (4, 4, 1), {"channels": (4,)}


@pytest.mark.parametrize(
    ("rule", "name", "shape", "options"),
    [
        (grlu.Backprop(), *TIED),
        (grlu.Backprop(), *CONVOLUTIONAL),
        (grlu.NodePerturbation(samples=8, sigma=0.1), *TIED),
        (grlu.NodePerturbation(samples=8, sigma=0.1), *SPARSE),
        (grlu.NodePerturbation(samples=8, sigma=0.1), *CONVOLUTIONAL),
        (grlu.EvolutionStrategy(population=64, sigma=0.05, rank=1), *TIED),
        (grlu.EvolutionStrategy(population=64, sigma=0.05, rank=1), *CONVOLUTIONAL),
    ],
)
def test_any_rule_learns_to_reconstruct(rule, name, shape, options):
    """Return images of bars: one of four rows or columns of a 4 x 4 image is lit."""
    rows = jnp.eye(4)[:, :, None] * jnp.ones((1, 1, 4))
    bars = jnp.concatenate([rows, rows.swapaxes(1, 2)]).reshape(8, *shape)
    model = models.MODELS[name](shape, 8, latent=6, rngs=nnx.Rngs(0), **options)
    optimizer = nnx.Optimizer(model, optax.adam(0.02), wrt=nnx.Param)
    estimate = rule(Reconstruction(), has_aux=True)

    @nnx.jit
    def step(model, optimizer, key):
        (reward, values), grads = estimate(model, {"image": bars}, key)
        optimizer.update(model, grads)
        return reward, values["mse"].mean()

    found = np.array([step(model, optimizer, jax.random.key(i)) for i in range(100)])
    (first, first_mse), (last, last_mse) = found[:3].mean(0), found[-3:].mean(0)
    assert last > first + 3  # nats, summed over 16 pixels
    assert last_mse < 0.8 * first_mse

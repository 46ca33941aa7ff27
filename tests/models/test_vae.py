"""Variational autoencoders: shapes, likelihoods against their formulas, invalid options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

import grlu
import models
from models import densities
from models.vae import LOG_VARIANCES, clamp

IMAGE = (6, 5, 2)


def made(name="ivae", shape=IMAGE, **options):
    return models.MODELS[name](shape, 10, rngs=nnx.Rngs(0), **({"latent": 4} | options))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian", "learned"])
@pytest.mark.parametrize("decoder", ["mlp", "conv"])
@pytest.mark.parametrize("encoder", ["mlp", "conv"])
def test_any_encoder_goes_with_any_decoder(encoder, decoder, likelihood):
    model = made(encoder=encoder, decoder=decoder, likelihood=likelihood)
    x = jax.random.uniform(jax.random.key(0), (3, *IMAGE))
    posterior = model.posterior(x)
    assert posterior.mean.shape == posterior.log_variance.shape == (3, 4)
    assert posterior.clamped.shape == (3,)
    np.testing.assert_array_equal(model.encode(x), posterior.mean)
    z = posterior.draw(jax.random.key(1), 7)
    assert z.shape == (3, 7, 4)
    assert model.decode(z).shape == (3, 7, *IMAGE)
    each = [model.log_likelihood(x, z[:, i]) for i in range(7)]
    np.testing.assert_allclose(model.log_likelihood(x, z), np.stack(each, 1), rtol=1e-4)
    assert model.sample(jax.random.key(0), 6).shape == (6, *IMAGE)


@pytest.mark.parametrize("hidden", [(), (9,), (9, 8, 7, 6)])
def test_any_number_of_hidden_layers(hidden):
    model = made("vae_mlp", (12,), encoder_hidden=hidden, decoder_hidden=hidden[::-1])
    shapes = [layer.kernel.shape for layer in model.encoder.layers]
    assert shapes == list(zip((12, *hidden), hidden, strict=False))
    assert len(model.decoder.layers) == len(hidden)
    assert model(jnp.ones((2, 12))).shape == (2, 12)


def test_draws_in_training_and_the_mean_in_evaluation():
    model = made()
    x = jnp.ones((2, *IMAGE))
    assert (model(x) != model(x)).any()
    model.eval()
    np.testing.assert_array_equal(model(x), model.decode(model.encode(x)))
    np.testing.assert_array_equal(model.reconstruct(x), nnx.sigmoid(model(x)))


def test_a_line_between_two_images_ends_at_both():
    model = made()
    one, other = jax.random.uniform(jax.random.key(0), (2, 3, *IMAGE))
    line = model.interpolate(one, other, 5)
    assert line.shape == (3, 5, *IMAGE)
    np.testing.assert_allclose(line[:, 0], model.reconstruct(one), rtol=1e-5)
    np.testing.assert_allclose(line[:, -1], model.reconstruct(other), rtol=1e-5)


def test_a_bernoulli_likelihood_is_a_sum_of_nats():
    model = made("vae_mlp", (12,))
    x = jax.random.bernoulli(jax.random.key(0), 0.5, (3, 12)).astype(jnp.float32)
    z = jax.random.normal(jax.random.key(1), (3, 4))
    p = scipy.special.expit(np.asarray(model.decode(z), np.float64))
    expected = scipy.stats.bernoulli(p).logpmf(np.asarray(x)).sum(1)
    np.testing.assert_allclose(model.log_likelihood(x, z), expected, rtol=1e-5)


@pytest.mark.parametrize("likelihood", ["gaussian", "learned"])
def test_a_gaussian_likelihood_is_a_sum_of_nats(likelihood):
    model = made("vae_mlp", (12,), likelihood=likelihood, sd=0.3)
    x, z = jax.random.normal(jax.random.key(0), (3, 12)), jnp.ones((3, 4))
    if likelihood == "learned":
        model.log_sd[...] = model.log_sd[...] + 0.5
    sd = 0.3 * np.exp(0.5) if likelihood == "learned" else 0.3
    expected = scipy.stats.norm(model.decode(z), sd).logpdf(x).sum(1)
    np.testing.assert_allclose(model.log_likelihood(x, z), expected, rtol=1e-4)


def test_divergences_are_the_integrals_they_stand_for():
    mean, log_variance = jnp.array([0.3]), jnp.array([-1.2])
    grid = np.linspace(-12, 12, 200_001)
    q = scipy.stats.norm(0.3, np.exp(-0.6))
    for found, p in (
        (densities.kl_to_standard(mean, log_variance), scipy.stats.norm()),
        (
            densities.kl_between(mean, log_variance, jnp.array([-0.5]), jnp.array([0.4])),
            scipy.stats.norm(-0.5, np.exp(0.2)),
        ),
    ):
        integral = np.trapezoid(q.pdf(grid) * (q.logpdf(grid) - p.logpdf(grid)), grid)
        np.testing.assert_allclose(found[0], integral, rtol=1e-5)


def test_softplus_is_exact_far_from_zero_and_so_is_its_slope():
    x = jnp.array([-200.0, -30.0, -1.0, 0.0, 1.0, 30.0, 200.0])
    np.testing.assert_allclose(densities.softplus(x), np.logaddexp(0, x), rtol=1e-6)
    slope = jax.vmap(jax.grad(densities.softplus))(x)
    np.testing.assert_allclose(slope, scipy.special.expit(x), rtol=1e-6)


def test_an_exploding_log_variance_is_clamped_and_counted():
    model = made("vae_mlp", (12,))
    model.encoder.heads.bias[...] = jnp.array([0.0] * 4 + [500.0, -500.0, 0.0, 0.0])
    posterior = model.posterior(jnp.zeros((2, 12)))
    assert posterior.log_variance.min() == LOG_VARIANCES[0]
    assert posterior.log_variance.max() == LOG_VARIANCES[1]
    np.testing.assert_array_equal(posterior.clamped, [2, 2])
    # The gradient that pulls it back is not cut.
    assert jax.grad(lambda v: jnp.exp(clamp(v)))(500.0) == pytest.approx(np.exp(8), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"latent": 61}, "latent must be between 1 and the 60 features of an example, got 61"),
        ({"latent": 0}, "latent must be between 1"),
        ({"encoder_hidden": (8, 0)}, "encoder_hidden must be positive"),
        ({"decoder_hidden": (-1,)}, "decoder_hidden must be positive"),
        ({"encoder": "conv", "shape": (12,)}, "set dataset.flatten=false"),
        ({"decoder": "conv", "decoder_channels": (0,)}, "needs positive channels"),
        ({"likelihood": "poisson"}, "likelihood must be bernoulli, gaussian or learned"),
        ({"likelihood": "gaussian", "sd": 0.0}, "sd must be positive"),
        ({"encoder_activation": "sine"}, "activation must be one of"),
    ],
)
def test_invalid_inputs_are_refused(options, sentence):
    with pytest.raises(grlu.UserError, match=sentence):
        made(**options)

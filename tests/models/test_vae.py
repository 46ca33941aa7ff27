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


passed = nnx.jit(lambda model, x: model(x))


def made(name="ivae", shape=IMAGE, **options):
    options = {"latent": 4} | options
    return nnx.jit(lambda: models.MODELS[name](shape, 10, rngs=nnx.Rngs(0), **options))()


@pytest.mark.parametrize(
    ("encoder", "decoder", "likelihood"),
    [
        ("mlp", "mlp", "bernoulli"),
        ("mlp", "conv", "gaussian"),
        ("mlp", "conv", "learned"),
        ("conv", "mlp", "gaussian"),
        ("conv", "mlp", "learned"),
        ("conv", "conv", "bernoulli"),
    ],
)
def test_any_encoder_goes_with_any_decoder(encoder, decoder, likelihood):
    model = made(encoder=encoder, decoder=decoder, likelihood=likelihood)
    x = jnp.asarray(np.random.default_rng(0).random((3, *IMAGE), np.float32))

    @nnx.jit
    def every(model, x, key):
        posterior = model.posterior(x)
        z = posterior.draw(key, 7)
        each = [model.log_likelihood(x, z[:, i]) for i in range(7)]
        found = model.log_likelihood(x, z), jnp.stack(each, 1)
        return posterior, model.encode(x), z, model.decode(z), found, model.sample(key, 6)

    posterior, code, z, decoded, (found, each), samples = every(model, x, jax.random.key(1))
    assert posterior.mean.shape == posterior.log_variance.shape == (3, 4)
    assert posterior.clamped.shape == (3,)
    np.testing.assert_array_equal(code, posterior.mean)
    assert z.shape == (3, 7, 4)
    assert decoded.shape == (3, 7, *IMAGE)
    np.testing.assert_allclose(found, each, rtol=1e-4)
    assert samples.shape == (6, *IMAGE)


@pytest.mark.parametrize("hidden", [(), (9,), (9, 8, 7, 6)])
def test_any_number_of_hidden_layers(hidden):
    model = made("vae_mlp", (12,), encoder_hidden=hidden, decoder_hidden=hidden[::-1])
    shapes = [layer.kernel.shape for layer in model.encoder.layers]
    assert shapes == list(zip((12, *hidden), hidden, strict=False))
    assert len(model.decoder.layers) == len(hidden)
    assert passed(model, jnp.ones((2, 12))).shape == (2, 12)


def test_draws_in_training_and_the_mean_in_evaluation():
    model = made()
    x = jnp.ones((2, *IMAGE))
    assert (passed(model, x) != passed(model, x)).any()
    model.eval()

    @nnx.jit
    def every(model, x):
        return model(x), model.decode(model.encode(x)), model.reconstruct(x)

    found, decoded, reconstructed = every(model, x)
    np.testing.assert_array_equal(found, decoded)
    np.testing.assert_allclose(reconstructed, scipy.special.expit(found), rtol=1e-6)


def test_a_line_between_two_images_ends_at_both():
    model = made()
    one, other = jnp.asarray(np.random.default_rng(0).random((2, 3, *IMAGE), np.float32))

    @nnx.jit
    def every(model, one, other):
        ends = model.reconstruct(one), model.reconstruct(other)
        return model.interpolate(one, other, 5), *ends

    line, first, last = every(model, one, other)
    assert line.shape == (3, 5, *IMAGE)
    np.testing.assert_allclose(line[:, 0], first, rtol=1e-5)
    np.testing.assert_allclose(line[:, -1], last, rtol=1e-5)


def test_a_bernoulli_likelihood_is_a_sum_of_nats():
    model = made("vae_mlp", (12,))
    random = np.random.default_rng(0)
    x = jnp.asarray(random.integers(0, 2, (3, 12)), jnp.float32)
    z = jnp.asarray(random.standard_normal((3, 4), np.float32))

    @nnx.jit
    def both(model, x, z):
        return model.decode(z), model.log_likelihood(x, z)

    decoded, found = both(model, x, z)
    p = scipy.special.expit(np.asarray(decoded, np.float64))
    expected = scipy.stats.bernoulli(p).logpmf(np.asarray(x)).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


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

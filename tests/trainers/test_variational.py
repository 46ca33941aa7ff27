"""Bounds against closed forms, binarised data, and VAEs trained by every rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from flax import nnx

import grlu
import models
import trainers
from grlu.errors import UserError
from models.vae import Posterior
from trainers.objectives.elbo import Elbo, Iwae, iwae_bound, log_weights, terms

LATENT, FEATURES, SD = 3, 6, 0.7


@pytest.fixture
def linear():
    """Model x = W z + b + noise with a known marginal and posterior."""
    model = models.MODELS["vae_mlp"](
        (FEATURES,),
        0,
        latent=LATENT,
        encoder_hidden=(),
        decoder_hidden=(),
        likelihood="gaussian",
        sd=SD,
        rngs=nnx.Rngs(0),
    )
    model.decoder.out.bias[...] = jnp.linspace(-1, 1, FEATURES)
    w = np.asarray(model.decoder.out.kernel[...], np.float64)  # (latent, features)
    covariance = w.T @ w + SD**2 * np.eye(FEATURES)
    marginal = scipy.stats.multivariate_normal(np.linspace(-1, 1, FEATURES), covariance)
    x = jnp.asarray(marginal.rvs(20, random_state=0), jnp.float32)
    precision = np.eye(LATENT) + w @ w.T / SD**2
    mean = np.linalg.solve(precision, w @ (np.asarray(x) - np.linspace(-1, 1, FEATURES)).T).T
    mean = mean / SD**2
    return model, x, marginal.logpdf(x), mean, precision


def gaussian(mean, variance):
    mean = jnp.asarray(mean, jnp.float32)
    log_variance = jnp.broadcast_to(jnp.log(jnp.asarray(variance, jnp.float32))[None], mean.shape)
    return Posterior(mean, log_variance, jnp.zeros(len(mean)))


def test_the_iwae_bound_is_the_marginal_of_a_linear_gaussian_model(linear):
    model, x, exact, mean, precision = linear
    proposal = gaussian(mean, 1.3 * np.diag(np.linalg.inv(precision)))

    @jax.jit
    def bound(x, key):
        return iwae_bound(log_weights(model, x, proposal, proposal.draw(key, 20_000)))

    found = bound(x, jax.random.key(0))
    np.testing.assert_allclose(found, exact, atol=0.02)


def test_the_elbo_is_its_closed_form(linear):
    model, x, exact, mean, precision = linear
    variance = np.array([0.2, 0.4, 0.1])
    q = gaussian(mean + 0.1, variance)
    # log p(x) - KL(q ‖ the exact posterior), by the formula for two Gaussians.
    gap = 0.5 * (
        np.trace(precision @ np.diag(variance))
        + np.einsum("i,ij,j", np.full(3, 0.1), precision, np.full(3, 0.1))
        - 3
        - np.linalg.slogdet(precision)[1]
        - np.log(variance).sum()
    )
    found = jax.jit(lambda x, key: terms(model, x, q, q.draw(key, 50_000)))(x, jax.random.key(0))
    np.testing.assert_allclose(found["elbo"], exact - gap, atol=0.03)
    prior = [scipy.stats.norm(m, np.sqrt(variance)).entropy() for m in mean + 0.1]
    second = variance[None] + (mean + 0.1) ** 2
    cross = 0.5 * second + 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found["kl"], (cross - prior).sum(1), rtol=1e-4)


def test_more_samples_give_a_tighter_bound_and_one_the_elbo(linear):
    model, x, exact, mean, _ = linear
    q = gaussian(mean + 0.1, [0.2, 0.4, 0.1])

    @jax.jit
    def found(x, key):
        z = q.draw(key, 20_000)
        weights = log_weights(model, x, q, z)
        bounds = [iwae_bound(weights.reshape(len(x), -1, k)).mean() for k in (1, 5, 50)]
        return bounds, terms(model, x, q, z)["elbo"].mean()

    bounds, elbo = found(x, jax.random.key(0))
    assert bounds[0] < bounds[1] < bounds[2] < exact.mean() + 0.01
    assert bounds[0] == pytest.approx(float(elbo), abs=0.02)


def test_beta_free_bits_and_warmup_change_only_the_reward(linear):
    model, x, *_ = linear
    batch = {"image": x}

    def found(objective):
        model.rngs = nnx.Rngs(0).fork()
        return nnx.jit(objective)(model, batch)[1]

    plain, heavy = found(Elbo()), found(Elbo(beta=3.0))
    np.testing.assert_allclose(plain["reward"], plain["elbo"], rtol=1e-6)
    np.testing.assert_array_equal(plain["elbo"], heavy["elbo"])
    np.testing.assert_allclose(heavy["reward"], plain["elbo"] - 2 * plain["kl"], rtol=1e-5)
    warm = Elbo(beta=3.0, kl_warmup=0.5)
    for progress, weight in ((0.0, 0.0), (0.25, 1.5), (0.5, 3.0), (1.0, 3.0)):
        value = found(warm.at(jnp.asarray(progress)))
        expected = plain["reconstruction"] - weight * plain["kl"]
        np.testing.assert_allclose(value["reward"], expected, rtol=1e-5)
    free = found(Elbo(free_bits=1000.0))["reward"]
    np.testing.assert_allclose(free, plain["reconstruction"] - 1000 * LATENT, rtol=1e-5)


BACKPROP, PERTURBATION = grlu.Backprop(), grlu.NodePerturbation(samples=16, sigma=0.1)


@pytest.mark.parametrize(
    ("rule", "objective"),
    [
        (BACKPROP, Iwae(3)),  # A run below raises the ELBO by backprop.
        (PERTURBATION, Elbo(latent_samples=3)),
        (PERTURBATION, Iwae(3)),
        (grlu.EvolutionStrategy(population=64, sigma=0.05, rank=1), Elbo()),
    ],
    ids=lambda each: type(each).__name__,
)
def test_every_rule_raises_the_bound(rule, objective):
    """Bars: one of four rows or columns of a 4 x 4 image is lit."""
    rows = jnp.eye(4)[:, :, None] * jnp.ones((1, 1, 4))
    bars = jnp.concatenate([rows, rows.swapaxes(1, 2)]).reshape(8, 16)
    model = models.MODELS["vae_mlp"](
        (16,), 8, latent=3, encoder_hidden=(12,), decoder_hidden=(12,), rngs=nnx.Rngs(0)
    )
    optimizer = nnx.Optimizer(model, optax.adam(0.02), wrt=nnx.Param)
    estimate = rule(objective, has_aux=True)

    @nnx.jit
    def step(model, optimizer, key):
        (reward, _), grads = estimate(model, {"image": bars}, key)
        optimizer.update(model, grads)
        return reward

    found = np.array([step(model, optimizer, jax.random.key(i)) for i in range(100)])
    assert found[-10:].mean() > found[:3].mean() + 2


@pytest.fixture
def tiny():
    return {
        "dataset": {"name": "digits", "normalize": "unit", "binarize": "dynamic"},
        "model": {
            "name": "vae_mlp",
            "latent": 8,
            "encoder_hidden": (64,),
            "decoder_hidden": (64,),
        },
        "trainer": {
            "name": "backprop",
            "objective": "elbo",
            "kl_warmup": 0.5,
            "epochs": 6,
            "batch_size": 32,
            "optimizer": "adam",
            "learning_rate": 3e-3,
        },
        "run": {"rows_per_epoch": 1},
    }


@pytest.mark.slow
def test_a_run_learns_and_its_kl_weight_is_logged(tiny, tmp_path):
    result = trainers.train(tiny, tmp_path / "run", progress=False)
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    weights = [float(row.split(",")[columns.index("kl_weight")]) for row in rows[1:]]
    assert weights == sorted(weights)
    assert 0 < weights[0] < 0.4
    assert weights[2:] == [pytest.approx(1, abs=0.02)] + 3 * [1.0]
    bounds = [float(row.split(",")[columns.index("validation_elbo")]) for row in rows[1:]]
    assert bounds[-1] > bounds[0] + 3
    assert result.metrics["test_clamped"] == 0
    again = trainers.evaluate(tmp_path / "run")
    assert again["test_elbo"] == result.metrics["test_elbo"]


@pytest.mark.slow
def test_several_seeds_train_with_a_gaussian_likelihood(tiny, tmp_path):
    tiny["dataset"] = {"name": "digits"}
    tiny["model"]["likelihood"] = "learned"
    tiny["trainer"] |= {"objective": "iwae", "latent_samples": 5, "kl_warmup": 0.0, "epochs": 2}
    tiny["run"]["seeds"] = 2
    result = trainers.train(tiny, tmp_path / "run", progress=False)
    assert result.metrics["test_reward"] > result.metrics["test_elbo"]
    assert "test_reward_sd" in result.metrics


@pytest.mark.parametrize(
    ("section", "change", "sentence"),
    [
        ("model", {"name": "mlp"}, "needs a variational autoencoder such as vae_mlp"),
        ("dataset", {"normalize": "standard"}, "set dataset.normalize=unit"),
        (
            "dataset",
            {"normalize": "standard", "binarize": None},
            "model.likelihood=bernoulli needs pixels in",
        ),
        ("dataset", {"binarize": "always"}, "dataset.binarize must be"),
        ("model", {"latent": 65}, "latent must be between 1 and the 64 features"),
        ("trainer", {"latent_samples": 0}, "latent_samples must be at least 1"),
        ("trainer", {"beta": -1.0}, "trainer.beta and trainer.free_bits must be"),
        ("trainer", {"objective": "iwae"}, "'kl_warmup': it is one of trainer.objective=elbo"),
    ],
)
def test_a_vae_that_does_not_fit_is_refused(section, change, sentence, tiny, tmp_path):
    if section == "model" and "name" in change:
        tiny["model"] = change
    else:
        tiny[section] |= change
    with pytest.raises(UserError, match=sentence):
        trainers.train(tiny, tmp_path / "run", progress=False)


@pytest.mark.slow
def test_the_latent_feeds_a_head_that_learns_from_reward(tiny, tmp_path):
    head = {"name": "grlu", "samples": 16, "epochs": 6, "optimizer": "adam", "batch_size": 8}
    pipeline = {
        "dataset": tiny["dataset"],
        "stages": [
            {"name": "slow", "model": tiny["model"], "trainer": tiny["trainer"]},
            {
                "name": "fast",
                "model": {"name": "mlp", "hidden": (32,)},
                "trainer": head | {"learning_rate": 5e-3, "noise": "orthogonal"},
            },
        ],
        "run": {"rows_per_epoch": 1},
    }
    result = trainers.train(pipeline, tmp_path / "run", progress=False)
    assert result.metrics["test_accuracy"] > 0.8

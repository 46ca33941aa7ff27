"""Iterative inference: the inner loop against known posteriors, and the modes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

import models
import trainers
from grlu.errors import RunError, UserError
from models.densities import kl_between
from models.vae import Posterior
from trainers.objectives.elbo import Elbo, terms
from trainers.objectives.refinement import Refined, Refinement

REFINEMENT = Refinement(steps=4, learning_rate=0.05, momentum=0.5, clip=2.0)


@pytest.fixture
def model():
    return models.MODELS["ivae"](
        (6,),
        0,
        latent=2,
        encoder_hidden=(5,),
        decoder_hidden=(4,),
        decoder_activation="tanh",
        rngs=nnx.Rngs(0),
    )


@pytest.fixture
def x():
    return jax.random.bernoulli(jax.random.key(0), 0.5, (3, 6)).astype(jnp.float32)


def rewarded(model, x, mode, refine=REFINEMENT):
    """Return the mean reward as a function of flat parameters, and these parameters."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    flat, restore = ravel_pytree(params)
    objective = Refined(Elbo(), refine, mode)

    def reward(flat):
        alike = nnx.merge(graphdef, restore(flat), rest, copy=True)
        return objective(alike, {"image": x})[0].mean()

    return reward, flat, restore


@pytest.mark.parametrize("natural", [False, True])
def test_the_gradient_through_the_loop_matches_finite_differences(model, x, natural):
    with jax.enable_x64(True):
        refine = dataclasses.replace(REFINEMENT, natural=natural)
        reward, flat, _ = rewarded(model, x, "e2e", refine)
        flat = flat.astype(jnp.float64)
        exact = jax.jit(jax.grad(reward))(flat)
        direction = jax.random.normal(jax.random.key(1), (5, flat.size), jnp.float64)
        reward = jax.jit(reward)
        for each in direction:
            slope = (reward(flat + 1e-5 * each) - reward(flat - 1e-5 * each)) / 2e-5
            np.testing.assert_allclose(exact @ each, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", ["decoupled", "kl", "e2e"])
def test_the_mode_selects_the_gradient_of_the_encoder(model, x, mode):
    reward, flat, restore = rewarded(model, x, mode)
    found = restore(jax.jit(jax.grad(reward))(flat))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    loop, last, first = jax.random.split(nnx.merge(graphdef, params, rest, copy=True).rngs(), 3)
    begin = model.posterior(x)
    goal, _ = jax.jit(lambda *args: REFINEMENT(model, *args, Elbo().reward))(x, begin, loop)

    def encoders(params):
        guess = nnx.merge(graphdef, params, rest, copy=True).posterior(x)
        if mode == "kl":
            pair = guess.mean, guess.log_variance, goal.mean, goal.log_variance
            return -kl_between(*pair).sum(-1).mean()
        return terms(model, x, guess, guess.draw(first))["elbo"].mean()

    def decoders(params):
        alike = nnx.merge(graphdef, params, rest, copy=True)
        return terms(alike, x, goal, goal.draw(last))["elbo"].mean()

    for part, fn in (("encoder", encoders), ("decoder", decoders)):
        expected, _ = ravel_pytree(jax.jit(jax.grad(fn))(params)[part])
        same = np.allclose(ravel_pytree(found[part])[0], expected, rtol=1e-4, atol=1e-6)
        assert same == (mode != "e2e"), part


@pytest.mark.parametrize("natural", [False, True])
def test_refinement_finds_the_posterior_of_a_linear_gaussian_model(natural):
    model = models.MODELS["vae_mlp"](
        (6,), 0, latent=2, decoder_hidden=(), likelihood="gaussian", sd=0.7, rngs=nnx.Rngs(0)
    )
    w, x = np.asarray(model.decoder.out.kernel[...]), jnp.ones((3, 6))
    precision = np.eye(2) + w @ w.T / 0.49
    mean = np.linalg.solve(precision, w @ np.ones(6) / 0.49)
    begin = Posterior(jnp.zeros((3, 2)), jnp.zeros((3, 2)), jnp.zeros(3))
    refine = Refinement(2000, 0.02, natural=natural)
    found, path = jax.jit(lambda x: refine(model, x, begin, jax.random.key(0)))(x)
    late = path["mean"][500:].mean((0, 1)), path["log_variance"][500:].mean((0, 1))
    np.testing.assert_allclose(late[0], mean, atol=0.03)
    np.testing.assert_allclose(late[1], -np.log(np.diag(precision)), atol=0.1)
    assert found.mean.shape == (3, 2)
    np.testing.assert_array_equal(path["mean"][0], begin.mean)


def test_a_linear_schedule_reduces_sampling_noise():
    model = models.MODELS["vae_mlp"](
        (6,), 0, latent=2, decoder_hidden=(), likelihood="gaussian", sd=0.7, rngs=nnx.Rngs(0)
    )
    w, x = np.asarray(model.decoder.out.kernel[...]), jnp.ones((200, 6))
    mean = np.linalg.solve(np.eye(2) + w @ w.T / 0.49, w @ np.ones(6) / 0.49)
    begin = Posterior(jnp.zeros((200, 2)), jnp.zeros((200, 2)), jnp.zeros(200))
    error = {}
    for schedule in ("constant", "linear"):
        refine = Refinement(100, 0.3, natural=True, schedule=schedule)
        found, _ = jax.jit(lambda x, refine=refine: refine(model, x, begin, jax.random.key(0)))(x)
        error[schedule] = np.square(np.asarray(found.mean) - mean[None]).mean()
    assert error["linear"] < error["constant"] / 2
    with pytest.raises(UserError, match="svi_schedule must be constant or linear"):
        Refinement(schedule="falling")


def test_natural_steps_stay_finite_from_a_far_too_wide_posterior():
    # The pixels pin the code to a thousandth, the guess is wide: a whole natural step would
    # overshoot by orders of magnitude.
    model = models.MODELS["ivae"](
        (4,),
        0,
        latent=2,
        encoder_hidden=(),
        decoder_hidden=(),
        likelihood="gaussian",
        sd=1e-3,
        rngs=nnx.Rngs(0),
    )
    x, wide = jnp.ones((3, 4)), jnp.zeros((3, 2))
    refine = Refinement(steps=60, learning_rate=0.3, natural=True, draws=4)
    begin = Posterior(wide + 5.0, wide + 4.0, wide)
    _, path = jax.jit(lambda x: refine(model, x, begin, jax.random.key(0)))(x)
    elbo = np.asarray(path["elbo"]).mean(1)
    assert np.isfinite(elbo).all()
    assert elbo[-1] > elbo[0] / 10


def test_examples_are_refined_independently(model, x):
    begin = model.posterior(x)
    alone = Posterior(*(each[:1] for each in begin))
    for natural in (False, True):
        refine = Refinement(1, 0.1, natural=natural)
        whole, _ = jax.jit(functools.partial(refine, model))(x, begin, jax.random.key(0))
        # Equal samples at equal positions in the batch.
        draws = jax.random.normal(jax.random.split(jax.random.key(0), 1)[0], begin.mean.shape)

        def elbo(mean, draws):
            z = mean + jnp.exp(0.5 * alone.log_variance) * draws
            return terms(model, x[:1], alone._replace(mean=mean), z)["elbo"].sum()

        moved = jax.jit(jax.grad(elbo))(alone.mean, draws[:1])
        moved = moved * jnp.exp(alone.log_variance) if natural else moved
        np.testing.assert_allclose(whole.mean[:1], alone.mean + 0.1 * moved, rtol=1e-4)


@pytest.fixture
def tiny():
    return {
        "dataset": {"name": "digits", "normalize": "unit", "binarize": "static"},
        "model": {"name": "ivae", "latent": 6, "encoder_hidden": (32,), "decoder_hidden": (32,)},
        "trainer": {
            "name": "svi",
            "svi_steps": 5,
            "svi_learning_rate": 0.05,
            "epochs": 5,
            "batch_size": 32,
            "optimizer": "adam",
            "learning_rate": 3e-3,
        },
        "run": {"rows_per_epoch": 1},
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["decoupled", "kl", "e2e"])
def test_every_mode_learns(mode, tiny, tmp_path):
    tiny["trainer"]["mode"] = mode
    result = trainers.train(tiny, tmp_path / "run", progress=False)
    assert result.metrics["test_refined"] > -32
    assert result.metrics["test_refined"] > result.metrics["test_elbo"]


def test_a_diverging_inner_loop_is_reported(tiny, tmp_path):
    tiny["model"]["decoder_activation"] = "relu"
    tiny["trainer"] |= {"svi_learning_rate": 1e12, "epochs": 1}
    with pytest.raises(RunError, match=r"not finite .* a lower trainer.svi_learning_rate"):
        trainers.train(tiny, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mode": "both"}, "trainer.mode must be"),
        ({"objective": "iwae"}, "trainer.objective must be one of 'elbo'"),
        ({"svi_steps": 0}, "trainer.svi_steps must be at least 1"),
        ({"svi_clip": 0.0}, "trainer.svi_clip must be positive"),
        ({"svi_momentum": 2.0}, "trainer.svi_momentum must be between"),
    ],
)
def test_wrong_values_are_refused(change, sentence, tiny, tmp_path):
    tiny["trainer"] |= change
    with pytest.raises(UserError, match=sentence):
        trainers.train(tiny, tmp_path / "run", progress=False)

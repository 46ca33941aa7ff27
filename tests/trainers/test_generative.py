"""Evaluation of generative models, on models with known answers."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from typer.testing import CliRunner

import models
import trainers
from grlu.cli import app
from grlu.errors import UserError
from input_pipeline.images.corruptions import CORRUPTIONS
from trainers.evaluation import generative
from trainers.evaluation.generative import Effort
from trainers.objectives.refinement import Refinement


@pytest.fixture
def linear():
    """Model x = W z + noise with a known marginal, and a poor encoder."""
    model = models.MODELS["vae_mlp"](
        (6,),
        0,
        latent=2,
        encoder_hidden=(),
        decoder_hidden=(),
        likelihood="gaussian",
        sd=1.0,
        rngs=nnx.Rngs(0),
    )
    model.encoder.heads.kernel[...] = 0.1 * model.encoder.heads.kernel[...]
    w = np.asarray(model.decoder.out.kernel[...], np.float64)
    x = np.random.default_rng(0).normal(size=(130, 6))
    marginal = scipy.stats.multivariate_normal(np.zeros(6), w.T @ w + np.eye(6))
    posterior = np.eye(2) + w @ w.T
    return model, jnp.asarray(x, jnp.float32), marginal.logpdf(x), posterior


def test_the_bound_converges_to_the_marginal_for_any_chunks(linear):
    model, x, exact, _ = linear
    np.testing.assert_allclose(generative.bound(model, x, 5000).mean(), exact.mean(), atol=0.02)
    # Only 7 samples of a chunk of 50 count.
    few = generative.bound(model, x, 7).mean()
    assert generative.bound(model, x, 1).mean() < few < exact.mean()


def test_a_refined_posterior_tightens_the_bound(linear):
    model, x, exact, _ = linear
    refined = generative.bound(model, x, 7, generative.LONG).mean()
    assert generative.bound(model, x, 7).mean() + 0.05 < refined < exact.mean()


def test_refinement_closes_the_gap_up_to_the_factorised_posterior(linear):
    model, x, exact, precision = linear
    # The best diagonal Gaussian has the exact mean and the diagonal of the precision.
    best = exact.mean() - 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    keys = jax.random.split(jax.random.key(0), 50)
    own = jax.jit(jax.vmap(lambda k: generative._elbo(model, x, model.posterior(x), k).mean()))
    elbo = float(own(keys).mean())
    assert generative.amortisation_gap(model, x) == pytest.approx(best - elbo, abs=0.05)


def test_active_units_and_the_probe_match_known_codes():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 600)
    codes = np.stack([labels * 1.0, 0.05 * generator.normal(size=600), np.ones(600)], 1)
    assert generative.active_units(codes) == 1
    assert generative.probe(codes[:300], labels[:300], codes[300:], labels[300:]) > 0.95
    noise = generator.normal(size=codes.shape)
    assert generative.probe(noise[:300], labels[:300], noise[300:], labels[300:]) < 0.5


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_keep_the_shape_and_the_range(name):
    images = jax.random.uniform(jax.random.key(0), (5, 8, 9, 3))
    made = CORRUPTIONS[name](images, jax.random.key(1))
    assert made.shape == images.shape
    assert images.min() <= made.min() <= made.max() <= images.max() + 1e-6
    assert bool((made != images).any()) == (name != "identity")
    again = CORRUPTIONS[name](images, jax.random.key(1))
    np.testing.assert_array_equal(made, again)


def test_corruptions_change_the_expected_pixels():
    images = jnp.full((200, 10, 10, 1), 0.5).at[0, 0, 0].set(0.0).at[0, 0, 1].set(1.0)

    def of(name):
        return np.asarray(CORRUPTIONS[name](images, jax.random.key(0)))

    np.testing.assert_allclose(of("blur")[1:], 0.5, rtol=1e-5)
    flat = jnp.zeros((1, 9, 9, 1)).at[0, 4, 4].set(1.0)
    np.testing.assert_allclose(CORRUPTIONS["blur"](flat, jax.random.key(0)).sum(), 1, rtol=1e-5)
    kinds = [(of("salt_and_pepper") == value).mean() for value in (0.0, 0.5, 1.0)]
    np.testing.assert_allclose(kinds, [0.3, 0.4, 0.3], atol=0.02)
    np.testing.assert_allclose((of("cutout")[1:] == 0).mean((1, 2, 3)), 0.16, atol=1e-6)
    assert (of("occlusion")[1:, 5:] == 0).all()
    np.testing.assert_array_equal(of("occlusion")[:, :5], images[:, :5])
    noise = of("white_noise")[1:]
    assert ((noise > 0) & (noise < 1)).mean() == pytest.approx(
        scipy.stats.norm(0, 0.6).cdf(0.5) * 2 - 1, abs=0.02
    )


def test_inference_on_corrupted_images_uses_one_estimator(linear):
    model, x, *_ = linear
    x = jnp.abs(x) / 4
    refine = Refinement(20, 0.1, natural=True, draws=8)
    every = generative.corrupted(model, x, (3, 2, 1), refine)
    found, same = every["occlusion"], every["identity"]
    assert {len(curve) for curve in found.values()} == {21}
    assert found["elbo"][-1] > found["elbo"][0]
    assert same["clean"] == same["corrupted"]
    assert found["clean"] != found["corrupted"]
    guess = model.reconstruct(x)
    assert same["clean"][0] == pytest.approx(float(jnp.square(guess - x).mean()), rel=1e-5)


@pytest.fixture
def run(tmp_path):
    def train(**trainer):
        config = {
            "dataset": {"name": "digits", "normalize": "unit", "binarize": "static"},
            "model": {
                "name": "ivae",
                "latent": 4,
                "encoder_hidden": (32,),
                "decoder_hidden": (32,),
            },
            "trainer": {"epochs": 8, "batch_size": 32, "optimizer": "adam", **trainer},
            "run": {"rows_per_epoch": 1},
        }
        trainers.train(config, tmp_path / "run", progress=False, overwrite=True)
        return tmp_path / "run"

    return train


@pytest.mark.slow
def test_evaluation_reports_every_metric(run):
    svi = {"name": "svi", "svi_steps": 3, "svi_learning_rate": 0.1, "svi_natural": True}
    path = run(**svi, learning_rate=5e-3)
    found = trainers.evaluate(path, effort=Effort(samples=60, images=150))
    # The trainer's own refinement is used, whatever the effort.
    assert found == trainers.evaluate(path, effort=Effort(samples=60, images=150, refined=True))
    assert -found["test_nll"] > found["test_elbo"]
    assert found["test_active_units"] == 4
    assert found["test_probe_accuracy"] > 0.6
    assert found["test_amortisation_gap"] > 0
    assert 0 < found["test_gap_closed"] < 1.05
    assert set(found["out_of_distribution"]) == set(CORRUPTIONS)
    assert len(found["iterative"]["elbo"]) == 4


@pytest.mark.slow
def test_a_collapsed_posterior_and_a_diverging_loop_are_reported(run, caplog):
    path = run(name="svi", beta=1000.0, svi_steps=2, svi_learning_rate=100.0, svi_clip=10.0)
    with caplog.at_level(logging.WARNING, "grlu"):
        trainers.evaluate(path, effort=Effort(samples=5, images=20))
    assert "the posterior has collapsed: only 0 of 4 latents" in caplog.text
    assert "the inner loop diverges: in 2 steps it takes the ELBO from" in caplog.text


FEW = {"samples": 5, "images": 20}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Narrow mnist_iwae on digits, one epoch per stage: folder and result."""
    path = tmp_path_factory.mktemp("pipeline") / "run"
    small = ["name=digits", "validation=200", "binarize=static", "subset=600"]
    small = [f"dataset.{change}" for change in small]
    small += [f"stages.elbo.model.{side}_hidden=[16]" for side in ("encoder", "decoder")]
    small += ["stages.elbo.model.latent=4", "stages.iwae.trainer.latent_samples=5"]
    small += [f"stages.{name}.trainer.epochs=1" for name in ("elbo", "iwae")]
    return path, trainers.train("mnist_iwae", path, overrides=small, progress=False)


@pytest.fixture(scope="module")
def evaluated(pipeline):
    path, _ = pipeline
    return trainers.evaluate(path, effort=Effort(**FEW))


def test_evaluating_a_pipeline_evaluates_its_last_stage(pipeline, evaluated):
    path, result = pipeline
    own = trainers.evaluate(path / "stages" / "iwae", effort=Effort(**FEW))
    assert evaluated == own | {"run": str(path)}
    trained = {k: v for k, v in result.metrics.items() if k.startswith("test_")}
    assert trained.items() <= evaluated.items()
    before = json.loads((path / "summary.json").read_text())["stages"]["elbo"]
    assert before["test_elbo"] != evaluated["test_elbo"]
    assert evaluated["step"] == result.step


def test_the_command_line_refines_posteriors_which_changes_only_the_bound(pipeline, evaluated):
    path, _ = pipeline
    asked = ["evaluate", str(path), "--samples", "5", "--images", "20", "--refined", "--json"]
    told = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert told.exit_code == 0, told.output
    refined = json.loads(told.stdout)
    # The encoder is poor after so few steps: the gain is nearly the whole gap.
    gain = evaluated["test_nll"] - refined["test_nll"]
    assert 0.1 < gain < 1.5 * evaluated["test_amortisation_gap"]
    assert refined | {"test_nll": evaluated["test_nll"]} == evaluated


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [
        ("stages/iwae", "{0} is not finished; 'grlu resume {0}' trains it"),
        (
            "stages/iwae/checkpoints",
            "{0}/stages/iwae has no checkpoint yet; 'grlu resume {0}' trains it",
        ),
    ],
    ids=["before_the_last_stage", "before_its_first_checkpoint"],
)
def test_an_unfinished_pipeline_is_refused(missing, sentence, pipeline, tmp_path):
    path, _ = pipeline
    run = shutil.copytree(path, tmp_path / "run")
    shutil.rmtree(run / missing)
    with pytest.raises(UserError) as told:
        trainers.evaluate(run)
    assert str(told.value) == sentence.format(run)

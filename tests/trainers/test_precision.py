"""Training in bfloat16: which operations use it, and how close the results are."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import trainers
from grlu.errors import UserError
from trainers.api import resolve
from trainers.build import make_experiment

IMAGES = {"name": "digits", "normalize": "unit"}
TEXT = {"name": "sonnets", "length": 8}
DENSE = {"latent": 3, "encoder_hidden": (8,), "decoder_hidden": (8,)}
CONV = {"latent": 3, "encoder_channels": (4,), "decoder_channels": (4,)}
GPT = {"name": "gpt", "layers": 1, "heads": 2, "width": 8}
CASES = {
    "mlp": (IMAGES, {"name": "mlp", "hidden": (8,)}, {}),
    "tied": (
        IMAGES,
        {"name": "autoencoder", "hidden": (8,), "latent": 4, "tied": True},
        {"objective": "reconstruction"},
    ),
    "vae_mlp": (IMAGES, {"name": "vae_mlp", **DENSE}, {"objective": "elbo"}),
    "vae_conv": (
        IMAGES | {"flatten": False},
        {"name": "vae_conv", **CONV, "likelihood": "learned"},
        {"objective": "iwae", "latent_samples": 3},
    ),
    "ivae": (IMAGES, {"name": "ivae", **DENSE}, {"name": "svi", "mode": "e2e", "svi_steps": 3}),
    "gpt": (TEXT, GPT, {"objective": "lm"}),
    "latent": (TEXT, GPT | {"attention": "latent"}, {"objective": "lm"}),
}


def stepped(dataset, model, trainer, precision):
    """Return the states before and after a step, its values and its program."""
    given = {"name": "backprop", "batch_size": 16, "learning_rate": 1.0, "precision": precision}
    config = resolve({"dataset": dataset, "model": model, "trainer": given | trainer})
    experiment = make_experiment(config)
    state = jax.jit(experiment.init)()
    batch = experiment.preprocess({k: a[:16] for k, a in experiment.train.items()})
    step = jax.jit(experiment.trainer.step)
    after, values = step(state, batch)
    return state, after, values, step.lower(state, batch).as_text()


QUICK = ("mlp", "vae_mlp", "gpt")


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow) for c in CASES],
)
def test_layers_multiply_in_bfloat16_and_the_rest_is_float32(case):
    state, exact, expected, _ = stepped(*CASES[case], "float32")
    again, rough, found, program = stepped(*CASES[case], "bfloat16")
    products = re.findall(r"stablehlo\.(?:dot_general|convolution).*: \((.*?)\) ->", program)
    narrow = [kinds.count("xbf16>") for kinds in products]
    # The gradients of an attention's scores are float32, as its softmax is.
    scores = 2 if case in ("gpt", "latent") else 0
    assert (narrow.count(1), narrow.count(0)) == (scores, 0), products
    assert all(leaf.dtype != jnp.bfloat16 for leaf in jax.tree.leaves((again, rough)))
    assert jax.tree.structure(state) == jax.tree.structure(again)
    for name, value in expected.items():
        assert found[name].dtype == jnp.float32
        np.testing.assert_allclose(found[name].mean(), value.mean(), rtol=0.02, atol=0.1)

    def moved(before, after):
        return ravel_pytree(after.params)[0] - ravel_pytree(before.params)[0]

    one, other = moved(state, exact), moved(again, rough)
    assert one @ other / jnp.sqrt((one @ one) * (other @ other)) > 0.99


def test_a_run_in_bfloat16_learns_and_is_evaluated_in_float32(tmp_path):
    dataset, model, _ = CASES["mlp"]
    config = {
        "dataset": dataset,
        "model": model,
        "trainer": {
            "name": "backprop",
            "precision": "bfloat16",
            "optimizer": "adam",
            "epochs": 5,
            "batch_size": 16,
        },
    }
    result = trainers.train(config, tmp_path / "run", progress=False)
    assert result.metrics["test_accuracy"] > 0.8
    assert trainers.evaluate(tmp_path / "run")["test_reward"] == result.metrics["test_reward"]


def test_a_rule_that_compares_rewards_is_refused():
    with pytest.raises(UserError, match=r"trainer\.precision=bfloat16 is for backprop"):
        trainers.TRAINERS["grlu"].settings(precision="bfloat16")

"""Bandit classification: one sampled answer per example or pass, and only 0 or 1 comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import grlu
import trainers
from grlu.errors import UserError
from trainers.objectives.bandit import Bandit

LOGITS = jnp.array([0.3, -0.4, 0.9])


class Table(nnx.Module):
    """Logits that are parameters."""

    def __init__(self):
        self.logits = nnx.Param(LOGITS)

    def __call__(self, x):
        return x @ self.logits[...][None]


def batch(count):
    return {"image": jnp.ones((count, 1)), "label": jnp.full(count, 2)}


@pytest.mark.parametrize("baseline", [0.0, 0.4])
def test_the_score_function_has_the_gradient_of_the_expected_reward(baseline):
    model = Table()
    objective = Bandit(baseline=baseline)
    objective.prepare(model)
    rewarded = grlu.Backprop()(lambda model, batch: objective(model, batch)[0])
    _, found = nnx.jit(rewarded)(model, batch(200_000), jax.random.key(0))
    expected = jax.grad(lambda logits: -nnx.softmax(logits)[2])(LOGITS)
    np.testing.assert_allclose(found["logits"][...], expected, atol=5e-3)


def test_a_pull_is_the_success_of_an_answer_with_the_probabilities_of_the_softmax():
    model = Table()
    objective = Bandit()
    objective.prepare(model)
    values = nnx.jit(lambda model: objective(model, batch(100_000))[1])(model)
    assert set(np.unique(values["reward"])) == {0.0, 1.0}
    assert float(values["reward"].mean()) == pytest.approx(float(nnx.softmax(LOGITS)[2]), abs=5e-3)


def test_passes_that_pull_give_the_gradient_of_the_smoothed_reward():
    """Noise on the logits of the expected reward, against one pull per noisy pass."""
    model = Table()
    objective = Bandit(score_function=False)
    objective.prepare(model)
    rule = grlu.NodePerturbation(samples=16, sigma=0.3)

    def pulls(model, batch):
        return objective(model, batch)[0]

    def expected(model, batch):
        return nnx.softmax(model(batch["image"]))[:, 2]

    found, smooth = (
        nnx.jit(rule(reward))(model, batch(20_000), jax.random.key(1))[1]["logits"][...]
        for reward in (pulls, expected)
    )
    np.testing.assert_allclose(found, smooth, atol=1e-2)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"name": "evolution"}, "needs a clean pass, and EvolutionStrategy has only noisy ones"),
        ({"name": "backprop", "score_function": False}, "has no gradient for backprop"),
        ({"name": "grlu", "baseline": 2.0}, "trainer.baseline must be between 0 and 1"),
    ],
)
def test_a_wrong_combination_is_refused(trainer, message, small, tmp_path):
    small["trainer"] = {"objective": "bandit", **trainer}
    with pytest.raises(UserError, match=message):
        trainers.train(small, tmp_path / "run", progress=False)


def test_a_run_learns_from_one_pull_per_example(small, tmp_path):
    small["trainer"] |= {"objective": "bandit", "epochs": 15}
    found = trainers.train(small, tmp_path / "run", progress=False).metrics
    assert found["test_accuracy"] > 0.5
    assert 0 < found["train_reward"] <= 1

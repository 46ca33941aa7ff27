"""The reward of a fast learner, and evolution on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainers
from grlu.errors import UserError
from trainers.objectives.registry import FastLearner, log_likelihood, objective_named


class Features:
    def __init__(self, mix):
        self.mix = mix

    def encode(self, x):
        return x @ self.mix


def batch(size=40):
    labels = np.random.default_rng(0).integers(0, 4, size).astype(np.int32)
    return {"image": jnp.eye(4)[labels] * 4.0, "label": jnp.asarray(labels)}


def test_features_that_separate_the_classes_are_rewarded():
    objective = FastLearner(log_likelihood, 4, learning_rate=0.1)
    clear, values = objective(Features(jnp.eye(4)), batch())
    blurred, _ = objective(Features(jnp.ones((4, 4)) + 0.2 * jnp.eye(4)[::-1]), batch())
    none, _ = objective(Features(jnp.zeros((4, 4))), batch())
    assert clear.shape == (40,)
    assert clear[0] == pytest.approx(-np.log(4))  # before learning
    assert clear[20:].mean() > clear[:20].mean() > none.mean()
    assert values["accuracy"][20:].mean() == 1
    assert set(values) == set(objective.metrics)
    np.testing.assert_allclose(blurred, clear, rtol=1e-2, atol=1e-2)  # The norm removes it.
    np.testing.assert_array_equal(clear, objective(Features(jnp.eye(4)), batch())[0])


def test_without_learning_the_head_is_at_chance():
    objective = FastLearner(log_likelihood, 4, learning_rate=0.0)
    rewards, _ = objective(Features(jnp.eye(4)), batch())
    np.testing.assert_allclose(rewards, -np.log(4), rtol=1e-6)


def test_the_head_learns_only_from_the_support():
    objective = FastLearner(log_likelihood, 4, learning_rate=0.1)
    given = batch()
    changed = given | {"label": given["label"].at[39].set((given["label"][39] + 1) % 4)}
    one, two = (np.asarray(objective(Features(jnp.eye(4)), b)[0]) for b in (given, changed))
    np.testing.assert_array_equal(one[:39], two[:39])
    assert one[39] != two[39]


@pytest.mark.slow
def test_evolution_grows_features_on_which_a_head_learns_faster(tmp_path):
    config = {
        "dataset": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [16]},
        "trainer": {
            "name": "evolution",
            "objective": "fast_learner",
            "population": 32,
            "rank": 1,
            "sigma": 0.05,
            "epochs": 3,
            "batch_size": 64,
            "optimizer": "adam",
            "learning_rate": 2e-2,
        },
        "run": {"rows_per_epoch": 1},
    }
    trainers.train(config, tmp_path / "run", progress=False)
    rows = trainers.loop.run_dir.read_metrics(tmp_path / "run" / "metrics.csv")
    assert float(rows[-1]["train_reward"]) > float(rows[0]["train_reward"]) + 0.05


def test_an_unknown_objective_is_refused():
    with pytest.raises(UserError, match=r"must be one of bandit, .*fast_learner"):
        objective_named("classificatoin")


def test_batches_of_any_size_are_split():
    objective = FastLearner(log_likelihood, 4)
    for size in (1, 2, 3):
        rewards, _ = jax.jit(lambda b: objective(Features(jnp.eye(4)), b))(batch(size))
        assert rewards.shape == (size,)

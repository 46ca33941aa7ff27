"""Objectives against their formulas, and their keys in a config."""

import dataclasses
import logging
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

import trainers
from grlu.errors import UserError
from trainers.config.schema import schema
from trainers.objectives.registry import OBJECTIVES, Reconstruction, log_likelihood

TARGET = np.array([[[0.0], [1.0]], [[0.25], [1.0]]], np.float32)
OUT = np.array([[[-3.0], [0.5]], [[2.0], [100.0]]], np.float32)


def reward(objective):
    rewards, values = objective(lambda x: jnp.asarray(OUT), {"image": jnp.asarray(TARGET)})
    np.testing.assert_array_equal(rewards, values["reward"])
    assert set(values) == set(objective.metrics)
    return rewards, values["mse"]


def test_bernoulli_reward_is_the_summed_cross_entropy():
    p = 1 / (1 + np.exp(-OUT.astype(np.float64)))
    with np.errstate(divide="ignore", invalid="ignore"):
        nats = TARGET * np.log(p) + np.where(TARGET < 1, (1 - TARGET) * np.log(1 - p), 0)
    rewards, mse = reward(Reconstruction())
    np.testing.assert_allclose(rewards, nats.sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(mse, ((TARGET - p) ** 2).mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("sd", [1.0, 0.5])
def test_gaussian_reward_is_the_log_of_the_normal_density(sd):
    nats = -0.5 * ((TARGET - OUT) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
    rewards, mse = reward(Reconstruction("gaussian", sd))
    np.testing.assert_allclose(rewards, nats.sum((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(mse, ((TARGET - OUT) ** 2).mean((1, 2)), rtol=1e-5)


def test_wrong_values_are_refused():
    with pytest.raises(UserError, match="'bernoulli' or 'gaussian'"):
        Reconstruction("poisson")
    with pytest.raises(UserError, match="sd must be positive"):
        Reconstruction("gaussian", 0.0)
    with pytest.raises(UserError, match=r"shape of its input, \(2, 2, 1\), got \(2, 10\)"):
        Reconstruction()(lambda x: jnp.ones((2, 10)), {"image": jnp.asarray(TARGET)})


OF_OBJECTIVES = {key for factory in OBJECTIVES.values() for key in schema(factory)}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("digits_grlu", {"reward"}),
        ("digits_vae", {"latent_samples", "beta", "free_bits", "kl_warmup"}),
        ("sonnets_lm", set()),
        ("copy_es", set(schema(OBJECTIVES["completion_reward"]))),
    ],
)
def test_a_config_has_only_the_keys_of_its_own_objective(name, own):
    assert OF_OBJECTIVES & set(trainers.resolve(name).trainer) == own


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        ("digits_grlu", ["beta=2"], "no key 'beta': it is one of trainer.objective=elbo$"),
        ("digits_vae", ["reward=probability"], "=classification or trainer.objective=fast_learner"),
        ("digits_vae", ["objective=iwae", "beta=2"], "no key 'beta'"),
        ("digits_grlu", ["greedyy=true"], "trainer has no key 'greedyy'; known"),
        ("digits_vae", ["betta=2"], "trainer has no key 'betta'; did you mean 'beta'"),
        ("digits_vae", ["beta=much"], "trainer.beta must be a number"),
        (
            "digits_vae",
            ["objective={a: 1}"],
            "objective must be one of bandit, classification",
        ),
        ("copy_grpo", ["objective=lm"], "trainer has no key 'objective'"),
    ],
)
def test_a_key_of_another_objective_is_refused(config, change, message):
    with pytest.raises(UserError, match=message):
        trainers.resolve(config, [f"trainer.{each}" for each in change])


def test_another_objective_drops_the_keys_of_the_file(caplog):
    before = trainers.resolve("digits_vae", ["trainer.latent_samples=3"])
    assert not caplog.text
    config = trainers.resolve("digits_vae", ["trainer.objective=iwae", "trainer.latent_samples=3"])
    assert "trainer 'backprop' with 'iwae' has no kl_warmup: dropped" in caplog.text
    assert OF_OBJECTIVES & set(config.trainer) == {"latent_samples"}
    kept = {k: v for k, v in before.trainer.items() if k in config.trainer}
    assert config.trainer.to_dict() == kept | {"objective": "iwae"}
    caplog.clear()
    assert trainers.resolve(config) == config
    assert not caplog.text
    assert "objective" not in trainers.resolve("copy_es", ["trainer.name=grpo"]).trainer


def test_a_saved_config_may_have_the_defaults_of_other_objectives(caplog):
    """Configs of older runs list the keys of all objectives."""
    caplog.set_level(logging.WARNING, "grlu")
    config = trainers.resolve("digits_grlu")
    old = config.to_dict()
    old["trainer"] |= {"beta": 1.0, "rewards": ["exact"], "reward_weights": None}
    assert trainers.resolve(old) == config
    assert "'grlu' with 'classification' has no beta, reward_weights, rewards" in caplog.text


@dataclasses.dataclass(frozen=True)
class Margin(trainers.Objective):
    """Lead of the right answer over the best wrong one, up to a margin."""

    margin: float = 1.0
    metrics: ClassVar = ("reward", "accuracy")
    better: ClassVar = ("accuracy", "max")

    def __call__(self, model, batch):
        logits = model(batch["image"])
        right = jnp.arange(logits.shape[-1])[None] == batch["label"][:, None]
        best = jnp.where(right, -jnp.inf, logits).max(-1)
        reward = jnp.minimum(jnp.where(right, logits, 0).sum(-1) - best, self.margin)
        return reward, {"reward": reward, "accuracy": (reward > 0).astype(jnp.float32)}


def test_a_user_objective_adds_its_keys(small, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "margin", Margin)
    small["trainer"] |= {"objective": "margin", "epochs": 2, "average": None}
    with pytest.raises(UserError, match=r"trainer.margin must be a number, got 'a'"):
        trainers.resolve(small, ["trainer.margin=a"])
    changes = ["trainer.margin=0.25", "trainer.name=backprop"]
    result = trainers.train(small, tmp_path / "run", overrides=changes, progress=False)
    assert 0.0 < result.metrics["train_reward"] <= 0.25
    assert result.metrics["test_accuracy"] > 0.7
    with pytest.raises(UserError, match=r"'margin': it is one of trainer\.objective=margin"):
        trainers.resolve(small, ["trainer.objective=classification", "trainer.margin=0.5"])


@dataclasses.dataclass(frozen=True)
class LastToken(trainers.Objective):
    """Log-likelihood of the last token of a text."""

    metrics: ClassVar = ("reward",)
    better: ClassVar = ("reward", "max")
    of_text: ClassVar = True

    def __call__(self, model, batch):
        rewards = log_likelihood(model(batch["tokens"][:, :-1])[:, -1], batch["tokens"][:, -1])
        return rewards, {"reward": rewards}


def test_a_user_objective_may_learn_from_text(tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "last", LastToken)
    config = {
        "dataset": {"name": "parity"},
        "model": {"name": "gpt", "layers": 1, "heads": 2, "width": 16},
        "trainer": {"name": "backprop", "objective": "last", "batch_size": 16, "epochs": 2},
    }
    config["trainer"] |= {"optimizer": "adam"}
    result = trainers.train(config, tmp_path / "run", progress=False)
    assert result.metrics["test_reward"] > -1  # It is 0 or 1: .69 nats, and at first 2.5.
    config |= {"dataset": {"name": "digits"}, "model": {"name": "mlp"}}
    with pytest.raises(UserError, match=r"=last does not go with digits, which is images"):
        trainers.train(config, tmp_path / "other", progress=False)


def test_a_factory_of_something_else_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "mine", lambda: log_likelihood)
    small["trainer"]["objective"] = "mine"
    with pytest.raises(UserError, match=r"'mine' must be a trainers\.Objective, .* a function"):
        trainers.train(small, tmp_path / "run", progress=False)


@pytest.mark.parametrize("key", ["samples", "learning_rate", "rule"])
def test_an_objective_may_not_reuse_a_key_of_the_trainer(key, small, monkeypatch):
    fields = [(key, float, dataclasses.field(default=1.0))]
    mine = dataclasses.make_dataclass("Mine", fields, frozen=True)
    monkeypatch.setitem(OBJECTIVES, "mine", mine)
    with pytest.raises(UserError, match=f"'mine' must call its keys otherwise .*: {key}$"):
        trainers.resolve(small, ["trainer.objective=mine"])

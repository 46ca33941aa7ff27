"""Learning from preferences of a judge whose utility is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import input_pipeline
import trainers
from grlu.errors import UserError
from models import GPT
from trainers.pairs import DPO, PairTrainer, RewardModel

KINDS = {"dpo": DPO, "reward_model": RewardModel}


@functools.cache
def copying():
    return input_pipeline.load("copy", digits=3, test=0.2, examples=300)


@functools.cache
def made(kind, **changes):
    settings = {"batch_size": 32, "optimizer": "adam", "learning_rate": 3e-3, **changes}

    def model(rngs):
        return GPT((8,), 12, layers=1, heads=2, width=16, rngs=rngs)

    trainer = PairTrainer(KINDS[kind](**settings), model, 10, copying())
    return trainer, jax.jit(trainer.step), jax.jit(trainer.init)(jax.random.key(0))


def batch(i):
    rows = np.random.default_rng(i).integers(0, copying().examples, 32)
    return copying().preprocess({k: jnp.asarray(v[rows]) for k, v in copying().train.items()})


def test_a_reward_model_learns_what_the_judge_prefers():
    _, step, state = made("reward_model", horizon=3)
    _, first = step(state, batch(0))
    np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-5)  # It starts at zero.
    for i in range(150):
        state, values = step(state, batch(i))
    assert values["pair_accuracy"].mean() > 0.9
    assert values["loss"].mean() < 0.3


def test_dpo_starts_where_the_pairs_come_from_and_comes_to_prefer_what_the_judge_does():
    _, step, state = made("dpo", beta=0.5)
    _, first = step(state, batch(0))
    np.testing.assert_allclose(first["margin"], 0, atol=1e-5)
    np.testing.assert_allclose(first["loss"], np.log(2), rtol=1e-5)
    for i in range(60):
        state, values = step(state, batch(i))
    assert values["pair_accuracy"].mean() > 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_both_begin_with_the_weights_of_another_run(kind):
    horizon = {"horizon": 3}
    trainer, _, state = made(kind, **(horizon if kind == "reward_model" else {"beta": 0.5}))
    other = trainer.init(jax.random.key(9))
    begun = state.begun_from(other.replace(params=other.drawn_from[0]))
    body = begun.params["body"] if kind == "reward_model" else begun.params
    for tree in (body, begun.drawn_from[0]):
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other.drawn_from[0]), strict=True)
        for one, two in pairs:
            np.testing.assert_array_equal(one, two)
    assert jax.tree.structure(begun) == jax.tree.structure(state)


def test_a_utility_that_is_unknown():
    with pytest.raises(UserError, match="did you mean 'taste'"):
        RewardModel(utility=("tast",))
    for name, kind in KINDS.items():
        assert trainers.TRAINERS[name] is kind

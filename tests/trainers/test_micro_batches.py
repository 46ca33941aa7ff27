"""Micro-batches and the check of the traced network, in whole runs."""

import jax
import numpy as np
import pytest

import grlu
import trainers
from grlu.inspection import checks as inspection
from trainers.build import make_experiment


def config(**trainer):
    return {
        "dataset": {"name": "digits"},
        "model": {"name": "mlp", "hidden": (16,)},
        "trainer": {"epochs": 1, "batch_size": 24, "learning_rate": 0.1, **trainer},
    }


@pytest.mark.parametrize("name", ["backprop", "grlu", "evolution"])
def test_micro_batches_give_the_step_of_the_whole_batch(name):
    def stepped(parts):
        made = make_experiment(trainers.resolve(config(name=name, micro_batches=parts)))
        batch = made.preprocess({k: v[:24] for k, v in made.train.items()})
        return jax.jit(made.trainer.step)(made.trainer.init(jax.random.key(0)), batch)

    (whole, values), (split, others) = stepped(1), stepped(4)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(split.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for key in values:
        np.testing.assert_allclose(values[key], others[key], rtol=1e-4, atol=1e-5)


def test_micro_batches_must_divide_the_batch():
    with pytest.raises(grlu.UserError, match=r"micro_batches must divide trainer.batch_size, 24"):
        make_experiment(trainers.resolve(config(name="grlu", micro_batches=5)))


def test_an_objective_of_whole_batches_refuses_micro_batches():
    wrong = config(name="evolution", objective="fast_learner", micro_batches=2)
    with pytest.raises(grlu.UserError, match="fast_learner rewards a batch as a whole"):
        make_experiment(trainers.resolve(wrong))


def test_micro_batches_turn_online_chunks_off():
    made = make_experiment(trainers.resolve(config(name="grlu", batch_size=2, micro_batches=2)))
    assert made.trainer.block == 1


def test_a_run_whose_traced_network_is_not_the_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.gradient.trainer.traced_and_own", other_network)
    with pytest.raises(grlu.UserError, match="the traced network is not the model"):
        trainers.train(config(name="grlu"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    trainers.train(config(name="backprop"), tmp_path / "run", progress=False)


def other_network(*args):
    traced, own = inspection.traced_and_own(*args)
    return 2 * traced, own

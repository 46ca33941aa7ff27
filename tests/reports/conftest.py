"""Small real runs to report on: digits, a narrow network, seconds."""

import shutil

import pytest
from flax import nnx

import grlu
import trainers
from grlu.rule import pure_objective
from trainers.gradient import Trainer, gradient_settings
from trainers.objectives import Reconstruction

SMALL = {
    "dataset": {"name": "digits"},
    "model": {"name": "mlp", "hidden": (16,)},
    "trainer": {"name": "grlu", "samples": 2, "epochs": 2, "batch_size": 16, "optimizer": "adam"},
    "run": {"rows_per_epoch": 1},
}


class Rebuilding(Trainer):
    """The gradient trainer with another objective."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.objective = Reconstruction("bernoulli")
        self.metrics, self.better = self.objective.metrics, self.objective.better
        model = nnx.eval_shape(lambda: self._make_model(nnx.Rngs(0)))
        model.train()
        self._pure = pure_objective(nnx.graphdef(model), self.objective, True, nnx.BatchStat)


class Rebuild(gradient_settings("Rebuild", grlu.Backprop, "Reconstruction by backprop.")):
    def build(self, *arguments):
        return Rebuilding(self, *arguments)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder with three runs: `two` of two seeds, `one` by backprop, and `rebuilt`."""
    folder = tmp_path_factory.mktemp("runs")
    trainers.train(
        {**SMALL, "run": {"rows_per_epoch": 1, "seeds": 2}}, folder / "two", progress=False
    )
    exact = {"name": "backprop", "epochs": 1, "batch_size": 16, "optimizer": "adam"}
    trainers.train({**SMALL, "trainer": exact}, folder / "one", progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trainers.TRAINERS, "rebuild", Rebuild)
        rebuilt = {
            "dataset": {"name": "digits", "normalize": "unit", "flatten": False},
            "model": {"name": "conv_autoencoder", "channels": (6,), "latent": 8},
            "trainer": {**exact, "name": "rebuild", "epochs": 3, "learning_rate": 0.01},
        }
        trainers.train(rebuilt, folder / "rebuilt", progress=False)
        yield folder


@pytest.fixture
def run(runs, tmp_path):
    """A copy of `two` that the test may change."""
    return shutil.copytree(runs / "two", tmp_path / "two")


@pytest.fixture
def pipeline(runs, tmp_path):
    """A pipeline of two stages without a config of its own; the head was trained first."""
    for name, stage in (("encoder", "rebuilt"), ("head", "two")):
        shutil.copytree(runs / stage, tmp_path / "line" / "stages" / name)
    return tmp_path / "line"

"""Small real runs to report on: digits, a narrow network, seconds."""

import shutil

import pytest

import trainers

SMALL = {
    "dataset": {"name": "digits"},
    "model": {"name": "mlp", "hidden": (16,)},
    "trainer": {"name": "grlu", "samples": 2, "epochs": 2, "batch_size": 16, "optimizer": "adam"},
    "run": {"rows_per_epoch": 1},
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Return a folder with three runs: `two` of two seeds, `one` by backprop, and `rebuilt`."""
    folder = tmp_path_factory.mktemp("runs")
    trainers.train(
        {**SMALL, "run": {"rows_per_epoch": 1, "seeds": 2}}, folder / "two", progress=False
    )
    exact = {"name": "backprop", "epochs": 1, "batch_size": 16, "optimizer": "adam"}
    trainers.train({**SMALL, "trainer": exact}, folder / "one", progress=False)
    rebuilt = {
        "dataset": {"name": "digits", "normalize": "unit", "flatten": False},
        "model": {"name": "conv_autoencoder", "channels": (6,), "latent": 8},
        "trainer": exact | {"objective": "reconstruction", "epochs": 3, "learning_rate": 0.01},
    }
    trainers.train(rebuilt, folder / "rebuilt", progress=False)
    return folder


@pytest.fixture
def run(runs, tmp_path):
    """Return a copy of `two` that the test may change."""
    return shutil.copytree(runs / "two", tmp_path / "two")


@pytest.fixture
def pipeline(runs, tmp_path):
    """Return a pipeline of two stages without its own config; the head was trained first."""
    for name, stage in (("encoder", "rebuilt"), ("head", "two")):
        shutil.copytree(runs / stage, tmp_path / "line" / "stages" / name)
    return tmp_path / "line"

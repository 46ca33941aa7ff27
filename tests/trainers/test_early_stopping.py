"""Early stopping, and runs that start from another run's weights."""

import logging

import numpy as np
import pytest

import trainers
from grlu.errors import UserError
from trainers.loop.experiment import RunSettings
from trainers.loop.run_dir import read_metrics
from trainers.loop.watch import exhausted, latest_is_best


@pytest.fixture
def small(small):
    """Config of a model that compiles quickly: without the threshold of a top-k."""
    small["model"] = {"name": "mlp", "hidden": (24,)}
    return small


def test_patience_is_exhausted_by_epochs_since_the_best():
    values = [0.1, 0.5, 0.3, 0.5, 0.4]
    assert exhausted(values, "max", 3)  # The first of two equals is the best.
    assert not exhausted(values, "max", 4)
    assert exhausted(values, "min", 4)
    assert not exhausted(values, "min", 5)
    assert not exhausted(values, "max", None)
    assert not exhausted([], "max", 1)


def test_the_latest_of_equal_values_is_the_best():
    assert latest_is_best([0.5, 0.1, 0.5], "max")
    assert not latest_is_best([0.5, 0.1], "max")
    assert latest_is_best([0.5, 0.1], "min")


@pytest.mark.slow
def test_a_run_with_patience_is_tested_at_its_best_state(small, tmp_path):
    # Steps so large that some epoch is worse than the preceding one.
    small["trainer"] = {
        "name": "backprop",
        "epochs": 40,
        "batch_size": 8,
        "optimizer": "adam",
        "learning_rate": 0.1,
        "schedule": "constant",
    }
    small["run"] = {"rows_per_epoch": 1, "patience": 2, "keep_best": 2, "keep_last": 1}
    result = trainers.train(small, tmp_path / "run", progress=False)
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    by_merit = sorted(rows, key=lambda r: (float(r["validation_accuracy"]), int(r["step"])))
    best, last = int(by_merit[-1]["step"]), int(rows[-1]["step"])
    assert best < last == result.step
    kept = {int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert kept == {int(row["step"]) for row in by_merit[-2:]} | {last}
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"tested: step {best}, the best by validation_accuracy" in log
    evaluated = trainers.evaluate(tmp_path / "run")
    assert evaluated["step"] == best
    assert evaluated["test_reward"] == result.metrics["test_reward"]


def test_patience_requires_keep_best():
    with pytest.raises(UserError, match=r"run\.keep_best must be at least 1"):
        RunSettings(patience=3, keep_best=0)


@pytest.fixture
def stalled(small):
    """Config with a rate near zero: no epoch is better than the first."""
    small["trainer"] |= {"learning_rate": 1e-12, "average": None}
    small["run"]["patience"] = 2
    return small


@pytest.mark.slow
def test_a_run_that_ends_early_is_tested_and_stays_ended(stalled, tmp_path):
    result = trainers.train(stalled, tmp_path / "run", progress=False)
    assert result.step == 3 * (1257 // 8)
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [bool(row["test_accuracy"]) for row in rows] == [False] * 11 + [True]
    assert (
        "ended: validation_accuracy was best 2 epochs ago"
        in (tmp_path / "run" / "log.txt").read_text()
    )
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    assert trainers.resume(tmp_path / "run", progress=False).step == result.step
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


def test_early_stopping_requires_a_validation_split(stalled, tmp_path):
    stalled["dataset"]["validation"] = 0
    with pytest.raises(UserError, match=r"run\.patience needs a validation split"):
        trainers.train(stalled, tmp_path / "run", progress=False)


@pytest.mark.slow
def test_a_run_starts_from_the_weights_that_fit(small, tmp_path, caplog):
    small["trainer"]["epochs"] = 1
    first = trainers.train(small, tmp_path / "first", progress=False)
    again = small | {"run": {**small["run"], "init_from": str(tmp_path / "first")}}
    again["trainer"] = small["trainer"] | {"epochs": 0}
    with caplog.at_level(logging.INFO, "grlu"):
        same = trainers.train(again, tmp_path / "same", progress=False)
        assert "4 of 4 arrays start from" in caplog.text
        # The best is the only checkpoint; evaluation of both is by the running average or weights.
        assert same.metrics["test_accuracy"] == pytest.approx(
            first.metrics["test_accuracy"], abs=0.05
        )
        deeper = again | {"model": small["model"] | {"hidden": (24, 9)}}
        trainers.train(deeper, tmp_path / "deeper", progress=False)
        assert "2 of 6 arrays start from" in caplog.text
    assert np.isfinite(same.metrics["test_reward"])
    with pytest.raises(UserError, match="none of the 6 arrays of this model"):
        trainers.train(
            again | {"model": small["model"] | {"hidden": (23, 11)}},
            tmp_path / "none",
            progress=False,
        )
    assert not (tmp_path / "none").exists()

"""Evaluation of checkpoints for reports, against the run's own evaluation."""

import json
import shutil

import numpy as np
import pytest

import trainers
from grlu.errors import UserError
from reports.learned import learned
from reports.record import read_record


def test_confusion_matches_the_evaluation(runs):
    found = learned(read_record(runs / "two"))
    tested = trainers.evaluate(runs / "two")
    assert found.step == tested["step"] == 156
    assert found.confusion.shape == (10, 10)
    assert found.confusion.sum() == 2 * 360  # seeds, test images
    right = np.trace(found.confusion) / found.confusion.sum()
    assert right == pytest.approx(tested["test_accuracy"], abs=1e-6)


def test_receptive_fields_are_the_strongest_columns_of_the_first_kernel(runs):
    found = learned(read_record(runs / "one"))
    assert found.fields.shape == (16, 8, 8, 1)
    assert not found.convolution
    norms = np.linalg.norm(found.fields.reshape(16, -1), axis=1)
    assert (np.diff(norms) <= 0).all()
    assert found.inputs is None


def test_an_autoencoder_shows_codes_and_reconstructions(runs):
    found = learned(read_record(runs / "rebuilt"))
    assert found.confusion is None
    assert found.convolution
    assert found.fields.shape == (6, 3, 3, 1)
    assert found.codes.shape == (360, 8)
    assert found.inputs.shape == found.outputs.shape == (10, 8, 8, 1)
    # Means of a Bernoulli, not logits, that match the images above them.
    assert 0 <= found.outputs.min() < found.outputs.max() <= 1
    own = np.mean((found.inputs - found.outputs) ** 2, (1, 2, 3))
    shifted = np.mean((found.inputs - np.roll(found.outputs, 1, 0)) ** 2, (1, 2, 3))
    assert own.mean() < 0.5 * shifted.mean()


def test_run_without_checkpoint_is_refused_and_unchanged(run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="has no checkpoint yet"):
        learned(read_record(run))
    assert not (run / "checkpoints").exists()


def test_mismatched_config_is_refused(run):
    config = json.loads((run / "config.json").read_text())
    config["model"]["hidden"] = [17]
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="don't match"):
        learned(read_record(run))


def test_stage_is_evaluated_on_the_features_of_its_seeds(tmp_path):
    exact = {"name": "backprop", "epochs": 1, "batch_size": 16, "optimizer": "adam"}
    stages = [
        {"name": "slow", "model": {"name": "mlp", "hidden": [16]}, "trainer": exact},
        {"name": "fast", "model": {"name": "mlp", "hidden": [8]}, "trainer": exact},
    ]
    config = {"dataset": {"name": "digits"}, "stages": stages, "run": {"seeds": 2}}
    trainers.train(config, tmp_path / "run", progress=False)
    found = learned(read_record(tmp_path / "run" / "stages" / "fast"))
    assert found.confusion.sum() == 2 * 360
    right = np.trace(found.confusion) / found.confusion.sum()
    assert right == pytest.approx(trainers.evaluate(tmp_path / "run")["test_accuracy"], abs=1e-6)
    assert found.codes.shape == (360, 8)

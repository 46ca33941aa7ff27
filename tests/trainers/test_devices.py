"""Seeds on several devices: the same run for any number of devices."""

import pytest

import trainers
from trainers.config.load import to_json
from trainers.loop.run_dir import read_metrics


@pytest.mark.slow
def test_the_number_of_devices_does_not_change_the_result(small, tmp_path, grlu_command, devices):
    small["trainer"] |= {"epochs": 1, "optimizer": "sgd"}
    small["model"]["activation"] = "tanh"  # Rounding could switch a ReLU.
    small["run"]["seeds"] = 4
    config = tmp_path / "small.json"
    config.write_text(to_json(trainers.resolve(small)))
    one, four = tmp_path / "one", tmp_path / "four"
    process = grlu_command("train", config, "--run", four, "--quiet", env=devices(4))
    trainers.train(small, one, progress=False)
    assert process.wait() == 0, process.output("stderr")
    rows = [read_metrics(run / "metrics.csv")[-1] for run in (one, four)]
    for name, value in rows[0].items():
        assert float(rows[1][name] or 0) == pytest.approx(float(value or 0), abs=1e-3), name
    # One device restores the checkpoint of four.
    found = trainers.evaluate(four)["test_accuracy"]
    assert found == pytest.approx(float(rows[1]["test_accuracy"]), abs=1e-6)

"""Seeds dealt to devices: the same run, whatever the number of devices."""

import pytest

import trainers
from trainers.config import to_json
from trainers.run_directory import read_metrics


@pytest.mark.slow
def test_the_number_of_devices_changes_nothing(small, tmp_path, grlu_command, devices):
    small["trainer"] |= {"epochs": 2, "optimizer": "sgd"}
    small["model"]["activation"] = "tanh"  # Rounding could choose another winner of a top-k.
    small["run"]["seeds"] = 4
    config = tmp_path / "small.json"
    config.write_text(to_json(trainers.resolve(small)))
    one, four = tmp_path / "one", tmp_path / "four"
    process = grlu_command("train", config, "--run", four, "--quiet", env=devices(4))
    trainers.train(small, one, progress=False)
    assert process.wait() == 0, process.stderr.read()
    rows = [read_metrics(run / "metrics.csv")[-1] for run in (one, four)]
    for name, value in rows[0].items():
        assert float(rows[1][name] or 0) == pytest.approx(float(value or 0), abs=1e-3), name
    # What four devices saved, one restores.
    found = trainers.evaluate(four)["test_accuracy"]
    assert found == pytest.approx(float(rows[1]["test_accuracy"]), abs=1e-6)

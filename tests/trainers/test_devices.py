"""Seeds dealt to devices: the same run, whatever the number of devices."""

import json

import numpy as np
import pytest

import trainers
from trainers.config import to_json
from trainers.run_directory import read_metrics


def flags(devices):
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}


@pytest.mark.slow
def test_the_number_of_devices_changes_nothing(small, tmp_path, grlu_command):
    small["trainer"] |= {"epochs": 2, "optimizer": "sgd"}
    small["model"]["activation"] = "tanh"  # Rounding could choose another winner of a top-k.
    small["run"]["seeds"] = 4
    config = tmp_path / "small.json"
    config.write_text(to_json(trainers.resolve(small)))
    rows = []
    for devices in (1, 4):
        run = tmp_path / str(devices)
        process = grlu_command("train", config, "--run", run, "--quiet", env=flags(devices))
        assert process.wait() == 0, process.stderr.read()
        rows.append(read_metrics(run / "metrics.csv")[-1])
    for name, value in rows[0].items():
        assert float(rows[1][name] or 0) == pytest.approx(float(value or 0), abs=1e-3), name
    # What four devices saved, one restores.
    process = grlu_command("evaluate", run, "--json", env=flags(1))
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    np.testing.assert_allclose(
        json.loads(out)["test_accuracy"], float(rows[1]["test_accuracy"]), atol=1e-6
    )

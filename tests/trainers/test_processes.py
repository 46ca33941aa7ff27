"""Two processes train, stop and resume one run together."""

import json
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest

import trainers
from trainers.config.load import to_json
from trainers.loop.run_dir import RunDirectory, read_metrics
from trainers.pipelines.open import restored


@pytest.fixture
def two(grlu_command, devices):
    """Start a command in two processes with two devices each."""

    def start(*arguments):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        together = ("--coordinator", f"localhost:{port}", "--processes", 2, "--process")
        return [grlu_command(*arguments, "--quiet", *together, i, env=devices(2)) for i in (0, 1)]

    return start


@pytest.mark.slow
def test_two_processes_train_one_run_and_copy_linked_runs_once(small, tmp_path, two):
    small["model"] |= {"hidden": (8,), "activation": "tanh"}
    small["trainer"] |= {"optimizer": "sgd", "learning_rate": 0.05, "average": None}
    small["trainer"] |= {"epochs": 6, "batch_size": 64}
    others, config, run = tmp_path / "others", tmp_path / "small.json", tmp_path / "two"
    untrained, links = ["trainer.epochs=0", "seed=4"], []
    for link, name in (("features", "slow"), ("run.init_from", "head")):
        trainers.train(small, others / name, overrides=[*untrained, *links], progress=False)
        links.append(f"{link}={others / name}")
    trainers.train(small, tmp_path / "one", overrides=links, progress=False)

    small["mesh"] = {"population": 2, "data": 2}
    config.write_text(to_json(trainers.resolve(small, links)))
    both = two("train", config, "--run", run)
    while not read_metrics(run / "metrics.csv"):
        assert all(process.poll() is None for process in both), both[0].communicate()
        time.sleep(0.02)
    both[1].send_signal(signal.SIGTERM)
    outs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [143, 143], outs
    assert "'grlu resume" in outs[0][1]
    stopped = read_metrics(run / "metrics.csv")[-1]["step"]
    assert int(stopped) < 6 * 19
    assert "0" in {path.name for path in (run / "checkpoints").iterdir()}

    shutil.rmtree(others)
    both = two("resume", run)
    outs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    rows = [read_metrics(path / "metrics.csv") for path in (tmp_path / "one", run)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    assert float(rows[1][-1]["test_reward"]) == pytest.approx(
        float(rows[0][-1]["test_reward"]), abs=1e-5
    )
    assert len(list(run.glob("events.*"))) == 2  # of the first process, before and after
    states = [restored(RunDirectory(r), best=False).state for r in (tmp_path / "one", run)]
    for a, b in zip(*(jax.tree.leaves(s.params) for s in states), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_a_mistake_stops_every_process(small, tmp_path, two):
    config = tmp_path / "small.json"
    config.write_text(json.dumps(small | {"mesh": {"data": 4}}))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").touch()
    both = two("train", config, "--run", taken)
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2], errors
    assert "is not empty" in errors[0]
    assert "failed in the first process" in errors[1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--coordinator", "localhost:1"], "--coordinator needs --run"),
        (["--coordinator", "localhost:1", "--run", "run"], "needs --processes N and --process I"),
        (["--processes", "2"], "--processes and --process need --coordinator"),
    ],
)
def test_incomplete_options_of_processes_are_refused(options, sentence, grlu_command, tmp_path):
    process = grlu_command("train", "digits_grlu", *options, cwd=tmp_path)
    _, errors = process.communicate()
    assert process.returncode == 2, errors
    assert sentence in errors

"""A small real run: digits, a narrow network, seconds."""

import os
import pathlib
import subprocess
import sys

import pytest

import trainers

ROOT = pathlib.Path(__file__).parents[2]


def config():
    return {
        "seed": 3,
        "dataset": {"name": "digits"},
        "model": {"name": "mlp", "hidden": (24,), "activation": "topk"},
        "trainer": {
            "name": "grlu",
            "samples": 4,
            "epochs": 6,
            "batch_size": 8,
            "optimizer": "adam",
            "learning_rate": 5e-3,
            "average": 0.99,
        },
        "run": {"rows_per_epoch": 4},
    }


@pytest.fixture
def small():
    """A config that trains in a second: 1,257 digits, 24 hidden units, 6 epochs."""
    return config()


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Its run, trained to the end: to be read, or copied."""
    path = tmp_path_factory.mktemp("small") / "whole"
    trainers.train(config(), path, progress=False)
    return path


@pytest.fixture
def grlu_command():
    """Starts the command line in a process of its own."""
    started = []

    def start(*arguments, **options):
        process = subprocess.Popen(
            [sys.executable, "-m", "grlu.cli", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=options.pop("cwd", ROOT),
            env={**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})},
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()

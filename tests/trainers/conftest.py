"""Fixtures: a small real run, processes to kill, and comparison of runs."""

import os
import pathlib
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainers
from tests.processes import Commands
from trainers.loop.run_dir import RunDirectory
from trainers.pipelines.open import restored

ROOT = pathlib.Path(__file__).parents[2]


def config():
    return {
        "seed": 3,
        "dataset": {"name": "digits"},
        "model": {"name": "mlp", "hidden": (24,), "activation": "relu"},
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
    """Config that trains in a second: 1,257 digits, 24 hidden units, 6 epochs."""
    return config()


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Finished run of `small`, to read or to copy."""
    path = tmp_path_factory.mktemp("small") / "whole"
    trainers.train(config(), path, progress=False)
    return path


@pytest.fixture(scope="session")
def commands():
    """Server of `grlu` commands."""
    server = Commands({**os.environ, "PYTHONPATH": str(ROOT)})
    yield server
    server.close()


@pytest.fixture
def grlu_command(commands):
    """Start a `grlu` command in its own process."""
    started = []

    def start(*arguments, cwd=ROOT, env=None):
        process = commands.start(arguments, cwd, **(env or {}))
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def interrupt(grlu_command):
    """Start the command line, and send it a signal when its table has a number of rows."""

    def start(table, rows, *arguments, number=signal.SIGKILL):
        # A resumed run replaces the table before it adds rows.
        old = table.stat().st_ino if table.exists() else None
        process = grlu_command(*arguments, "--quiet")
        while process.poll() is None:
            new = table.exists() and table.stat().st_ino != old
            if new and table.read_text().count("\n") > rows:
                process.send_signal(number)
                process.wait()
            time.sleep(0.002)
        assert process.returncode, process.output("stderr")
        return process

    return start


@pytest.fixture(scope="session")
def files():
    """Map the files of a folder to their modification times."""

    def of(folder):
        found = (p for p in folder.rglob("*") if p.is_file())
        return {p.relative_to(folder): p.stat().st_mtime_ns for p in found}

    return of


def recorded(run):
    """Return all records of a run or pipeline as bytes: tables, samples, newest states."""
    kept = {"metrics.csv", "samples.jsonl", "summary.json"}
    found = {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.name in kept}
    for own in list((run / "stages").glob("*")) or [run]:
        state = restored(RunDirectory(own), best=False).state
        for path, x in jax.tree_util.tree_leaves_with_path(state):
            key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
            array = np.asarray(jax.random.key_data(x) if key else x)
            found[f"{own.relative_to(run)}{jax.tree_util.keystr(path)}"] = array.tobytes()
    return found


@pytest.fixture(scope="session")
def same_run():
    """Check that two runs, or two pipelines, are bit-identical."""

    def check(one, two):
        a, b = recorded(one), recorded(two)
        assert a.keys() == b.keys()
        assert not [name for name in a if a[name] != b[name]]

    return check

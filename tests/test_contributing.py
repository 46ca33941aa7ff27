"""CONTRIBUTING.md followed literally, on a copy of the project."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
LISTINGS = re.findall(
    r"^```python\n# (\S+)\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S
)
TRAIN = """
import trainers

for data_set, model, trainer, own, accuracy in (
    ("bars", "residual", "jittered", {}, 0.9),
    ("digits", "mlp", "few", {"objective": "smoothed", "smoothing": 0.2, "samples": 32}, 0.5),
):
    section = {"name": trainer, "epochs": 3, "batch_size": 16, "optimizer": "adam", **own}
    config = {"dataset": {"name": data_set}, "model": {"name": model}, "trainer": section}
    result = trainers.train(config, f"runs/{trainer}", progress=False)
    assert result.metrics["test_accuracy"] >= accuracy, (trainer, result.metrics)

section = {"name": "grpo", "rewards": ("brief",), "end": "7", "batch_size": 100, "epochs": 0}
model = {"name": "gpt", "layers": 1, "heads": 1, "width": 16}
config = {"dataset": {"name": "copy", "examples": 400}, "model": model, "trainer": section}
result = trainers.train(config, "runs/brief", progress=False)
assert -4 <= result.metrics["test_reward"] <= -1, result.metrics
"""


def follow(project: pathlib.Path, name: str, listing: str) -> None:
    """Write a new file; add imports and dict entries to an existing one."""
    path = project / name
    if not path.exists():
        path.write_text(listing)
        return
    text = path.read_text()
    for line in listing.splitlines():
        if line.startswith("from "):
            text, count = re.subn(r"^(?=from )", f"{line}\n", text, count=1, flags=re.M)
        else:
            table, entry = re.fullmatch(r"(\w+) = \{\.\.\., (.*)\}", line).groups()
            text, count = re.subn(rf"^({table}\b.*= \{{)", rf"\1{entry}, ", text, flags=re.M)
        assert count == 1, line
    path.write_text(text)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    copy = tmp_path_factory.mktemp("project")
    for room in ("checkpoints", "configs", "grlu", "input_pipeline", "models", "trainers"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name, listing in LISTINGS:
        follow(copy, name, listing)
    return copy


def run(project, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("name", "listing"), LISTINGS, ids=[name for name, _ in LISTINGS])
def test_a_listing_is_short(name, listing):
    assert len(listing.splitlines()) <= 20


def test_every_kind_of_addition_is_shown():
    registries = ("__init__.py", "trainers/registry.py")
    assert {name for name, _ in LISTINGS if name.endswith(registries)} == {
        "models/__init__.py",
        "trainers/registry.py",
        "input_pipeline/__init__.py",
    }
    assert len(LISTINGS) == 12


def test_additions_are_listed(project):
    listed = run(project, "-m", "grlu.cli", "list")
    assert {"residual", "few", "smoothed", "jittered", "bars"} <= set(listed.split())


@pytest.mark.slow
def test_additions_train(project):
    run(project, "-c", TRAIN)

"""Logging to Weights & Biases, whose failures never stop a run."""

import sys
import types

import pytest

import trainers
from grlu.errors import UserError

CONFIG = {
    "dataset": {"name": "copy", "digits": 1, "test": 2, "validation": 1},
    "model": {"name": "gpt", "layers": 1, "heads": 1, "width": 4},
    "trainer": {"name": "backprop", "objective": "lm", "batch_size": 2, "epochs": 2},
    "run": {"rows_per_epoch": 1, "wandb": True},
}


class Fake(types.ModuleType):
    """Fake wandb: records all calls, and fails in some."""

    def __init__(self, fails=()):
        super().__init__("wandb")
        self.fails, self.sent, self.given, self.finished = fails, [], [], 0

    def init(self, **given):
        self._reach("init")
        self.given.append(given)
        return self

    def log(self, values, step):
        self._reach("log")
        self.sent.append((step, values))

    def finish(self):
        self._reach("finish")
        self.finished += 1

    def _reach(self, what):
        if what in self.fails:
            raise OSError(f"no network for {what}\nand more")


def fake(monkeypatch, *fails):
    module = Fake(fails)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_every_row_is_logged_with_its_speed(monkeypatch, tmp_path):
    wandb = fake(monkeypatch)
    result = trainers.train(CONFIG, tmp_path / "run", progress=False)
    assert [step for step, _ in wandb.sent] == [3, 6]
    last = wandb.sent[-1][1]
    assert last["test_nll"] == result.metrics["test_nll"]
    # A line feed, a prompt, "=", and an answer at the end.
    assert last["tokens_per_second"] == pytest.approx(3 * last["examples_per_second"])
    assert "tokens/s" in (tmp_path / "run" / "log.txt").read_text()
    assert "per_second" not in (tmp_path / "run" / "metrics.csv").read_text()
    assert wandb.finished == 1
    assert wandb.given[0]["config"]["trainer"]["objective"] == "lm"
    trainers.resume(tmp_path / "run", progress=False)
    one, two = (given["id"] for given in wandb.given)
    assert one == two
    assert trainers.evaluate(tmp_path / "run")["step"] == 6


@pytest.mark.parametrize("what", ["init", "log", "finish"])
def test_a_failure_is_logged_once_and_the_run_continues(what, monkeypatch, tmp_path):
    fake(monkeypatch, what)
    result = trainers.train(CONFIG, tmp_path / "run", progress=False)
    assert result.step == 6
    logged = [s for s in (tmp_path / "run" / "log.txt").read_text().split("\n") if "wandb" in s]
    assert len(logged) == 1
    assert logged[0].endswith(
        f"wandb: OSError: no network for {what}; the run continues without it"
    )


def test_a_missing_package_is_refused_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    own = {k: CONFIG[k] for k in ("model", "trainer")}
    common = {k: CONFIG[k] for k in ("dataset", "run")}
    for config in (CONFIG, {**common, "stages": [{"name": "one", **own}]}):
        with pytest.raises(UserError, match="pip install wandb"):
            trainers.train(config, tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()

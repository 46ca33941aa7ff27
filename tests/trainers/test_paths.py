"""Paths in a config are found from any folder."""

import pathlib

import pytest
from ml_collections import ConfigDict

import trainers
from grlu.errors import UserError
from trainers.config.paths import absolute

SETTINGS = {"batch_size": 8, "samples": 2, "epochs": 1}
CONFIG = {
    "dataset": {"name": "copy", "digits": 2, "examples": 80},
    "model": {"name": "gpt", "layers": 1, "heads": 1, "width": 8},
    "trainer": {"name": "grpo", "rewards": ["match", "mine.py:brief"], **SETTINGS},
    "run": {"rows_per_epoch": 1},
}


def test_existing_files_get_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py", "text.txt", "run"):
        (tmp_path / name).touch()
    config = {
        "judge": "run",
        "dataset": {"name": "text:text.txt", "like": "shakespeare", "data_dir": "none"},
        "trainer": {"rewards": ("match", "mine.py:f", "none.py:f"), "reference": "run"},
        "stages": ({"name": "run", "start": "run", "backbone": "run"},),
    }
    found = absolute(ConfigDict(config)).to_dict()
    there = str(tmp_path / "run")
    assert found["judge"] == there
    assert found["dataset"] == config["dataset"] | {"name": f"text:{tmp_path}/text.txt"}
    assert found["trainer"]["reference"] == there
    assert found["trainer"]["rewards"] == ("match", f"{tmp_path}/mine.py:f", "none.py:f")
    assert found["stages"] == ({"name": "run", "start": "run", "backbone": there},)


REMOTE = "gs://bucket/x"


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_a_remote_run_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uses = [trainers.evaluate, trainers.resume, trainers.generate]
    uses.append(lambda run: trainers.train(CONFIG, run, progress=False))
    for use in uses:
        with pytest.raises(UserError, match=f"the run {REMOTE} is not a local path"):
            use(kind(REMOTE))
    with pytest.raises(UserError, match=f"the config {REMOTE}.json is not a local path"):
        trainers.resolve(kind(f"{REMOTE}.json"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        f"start={REMOTE}",
        f"features={REMOTE}",
        f"judge={REMOTE}",
        f"trainer.reference={REMOTE}",
        f"trainer.rewards=['{REMOTE}.py:f']",
        f"run.init_from={REMOTE}",
        f"dataset.data_dir={REMOTE}",
        f"dataset.name=text:{REMOTE}",
        f"dataset.name=folder:{REMOTE}",
    ],
)
def test_a_config_that_names_a_remote_path_is_refused(change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = {"name": "sonnets", "length": 8}
    config = CONFIG | ({"dataset": text} if "data_dir" in change else {})
    key = change.partition("=")[0].rpartition(".")[2]
    with pytest.raises(UserError, match=f"{key}: {REMOTE}.* is not a local path"):
        trainers.train(config, "run", overrides=[change], progress=False)
    assert not list(tmp_path.iterdir())


def test_a_remote_backbone_is_refused(tmp_path):
    stages = [{"name": "one", "backbone": REMOTE}]
    with pytest.raises(UserError, match=f"backbone: {REMOTE} is not a local path"):
        trainers.train({"dataset": CONFIG["dataset"], "stages": stages}, tmp_path / "run")


@pytest.mark.slow
def test_a_run_is_evaluated_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = "def brief(prompts, completions, mask, **columns): return -mask.sum(1)"
    (tmp_path / "here" / "mine.py").write_text(text)
    result = trainers.train(CONFIG, "run", overrides=["trainer.epochs=0"], progress=False)
    monkeypatch.chdir(tmp_path)
    found = trainers.evaluate("here/run")
    assert found["test_reward_brief"] == result.metrics["test_reward_brief"] == -2


@pytest.mark.slow
def test_a_run_may_start_from_one_run_and_be_judged_by_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = {"name": "backprop", "objective": "lm", "batch_size": 8, "epochs": 0}
    trainers.train(CONFIG | {"trainer": first}, "first", progress=False)
    scores = {"name": "reward_model", "utility": ["share"], "batch_size": 8, "epochs": 1}
    judge = CONFIG | {"trainer": scores, "start": "first"}
    trainers.train(judge, "judge", progress=False)
    paid = CONFIG | {"trainer": {"name": "grpo", "rewards": ["judge"], **SETTINGS}}
    links = ["start=first", "judge=judge"]
    result = trainers.train(paid, "deep/policy", overrides=links, progress=False)
    assert trainers.evaluate("deep/policy")["test_reward"] == result.metrics["test_reward"]
    assert trainers.resume("deep/policy", progress=False).step == result.step
    rule = {"name": "weight_perturbation", "objective": "completion_reward", "batch_size": 8}
    rule |= {"rewards": ["judge"], "horizon": 1, "epochs": 1}
    found = trainers.train(
        CONFIG | {"trainer": rule}, "rule", overrides=["judge=judge"], progress=False
    )
    assert found.metrics["test_reward"] == trainers.evaluate("rule")["test_reward"] != 0
    wrong = CONFIG | {"trainer": first, "judge": "judge"}
    with pytest.raises(UserError, match="judge: a reward model scores completions: use"):
        trainers.train(wrong, "none", progress=False)
    with pytest.raises(UserError, match="nowhere holds no run"):
        trainers.train(judge | {"start": "nowhere"}, "none", progress=False)
    assert not (tmp_path / "none").exists()


def test_a_mistake_found_in_tracing_leaves_no_folder(tmp_path):
    trainer = {"name": "feedback_alignment", "objective": "lm", "batch_size": 8}
    with pytest.raises(UserError):
        trainers.train(CONFIG | {"trainer": trainer}, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()

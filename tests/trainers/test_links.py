"""Runs that outlive the runs they link to."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainers
from grlu.errors import UserError
from trainers.loop.run_dir import RunDirectory
from trainers.pipelines.links import config_of
from trainers.pipelines.open import open_experiment, restored

SHORT = {"batch_size": 8, "epochs": 1}
POLICY = {"name": "grpo", "samples": 2, "beta_kl": 0.1, **SHORT}
TEXT = {
    "dataset": {"name": "copy", "digits": 2, "examples": 80},
    "model": {"name": "gpt", "layers": 1, "heads": 1, "width": 8},
    "trainer": {"name": "backprop", "objective": "lm", **SHORT},
    "run": {"rows_per_epoch": 1, "keep_last": 10},
}
IMAGES = {
    "dataset": {"name": "digits", "subset": 64},
    "model": {"name": "mlp", "hidden": [8]},
    "trainer": {"name": "backprop", **SHORT},
    "run": {"rows_per_epoch": 1},
}


def train(config, path, *overrides, **trainer):
    """Train a run and return its folder."""
    config = config | {"trainer": config["trainer"] | trainer}
    return trainers.train(config, path, overrides=overrides, progress=False).run_dir


def reset(run, step):
    """Reset a run to a checkpoint."""
    for folder in run.glob("checkpoints/*"):
        if int(folder.name) > step:
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """Run of a small language model, to copy."""
    return train(TEXT, tmp_path_factory.mktemp("language") / "run")


@pytest.fixture
def first(language, tmp_path):
    """Copy of that run, next to which a test puts the others that it removes."""
    return shutil.copytree(language, tmp_path / "others" / "first")


@pytest.mark.slow
def test_a_policy_outlives_its_start_its_judge_its_reference_and_its_reward(
    first, tmp_path, same_run
):
    others = first.parent
    scores = TEXT | {"trainer": {"name": "reward_model", "utility": ["share"], **SHORT}}
    judge = train(scores, others / "judge", f"start={first}")
    wide = train(TEXT, others / "wide", "model.width=16", "model.heads=2", epochs=0)
    (others / "mine.py").write_text("def brief(p, c, mask, **columns): return -mask.sum(1)")
    rewards = ["judge", f"{others / 'mine.py'}:brief"]
    links = [f"start={first}", f"judge={judge}", f"trainer.reference={wide}"]
    config = TEXT | {"trainer": POLICY | {"rewards": rewards, "epochs": 2}}
    run = train(config, tmp_path / "run", *links)
    before = trainers.evaluate(run)
    assert before["test_kl"] > 0
    moved = shutil.copytree(run, tmp_path / "moved")
    shutil.rmtree(others)
    found = trainers.evaluate(moved)
    assert found == before | {"run": str(moved)}
    assert trainers.generate(moved, "1", tokens=2, greedy=True)
    steps = sorted(int(folder.name) for folder in (moved / "checkpoints").glob("*"))
    assert steps[0] == 0
    for step in steps[:2]:  # In the first epoch, and after it.
        reset(moved, step)
        trainers.resume(moved, progress=False)
        same_run(run, moved)


@pytest.mark.slow
@pytest.mark.parametrize("link", ["start", "run.init_from"])
def test_a_run_cut_off_in_its_first_epoch_or_save_starts_from_the_same_weights(
    link, first, tmp_path, same_run
):
    run = train(TEXT, tmp_path / "run", f"{link}={first}")
    unsaved, outlived = (shutil.copytree(run, tmp_path / name) for name in ("unsaved", "outlived"))
    reset(unsaved, -1)
    (unsaved / "checkpoints" / "0.orbax-checkpoint-tmp").mkdir()
    trainers.resume(unsaved, progress=False)
    same_run(run, unsaved)
    shutil.rmtree(first)
    reset(outlived, 0)
    trainers.resume(outlived, progress=False)
    same_run(run, outlived)


@pytest.mark.slow
def test_a_reference_policy_may_have_its_own_reference(first, tmp_path):
    held = TEXT | {"trainer": POLICY}
    second = train(held, first.parent / "second", reference=str(first), epochs=0)
    run = train(held, tmp_path / "run", reference=str(second))
    before = trainers.evaluate(run)
    shutil.rmtree(first.parent)
    assert trainers.evaluate(run) == before
    # The weights of references are in the run's own checkpoints.
    assert not list((run / "linked").rglob("checkpoints"))


@pytest.mark.slow
def test_a_run_on_features_outlives_the_models_that_encode_them(tmp_path, same_run):
    others = tmp_path / "others"
    one = train(IMAGES, others / "one", epochs=0)
    two = train(IMAGES, others / "two", f"features={one}", epochs=0)
    run = train(IMAGES, tmp_path / "run", f"features={two}", epochs=2)
    before = trainers.evaluate(run)
    shutil.rmtree(others)
    assert trainers.evaluate(run) == before
    again = shutil.copytree(run, tmp_path / "again")
    reset(again, 8)
    trainers.resume(again, progress=False)
    same_run(run, again)


@pytest.mark.slow
def test_a_pipeline_outlives_its_backbone_and_that_backbones_features(tmp_path, monkeypatch):
    others = tmp_path / "others"
    one = train(IMAGES, others / "one", epochs=0)
    two = train(IMAGES, others / "two", f"features={one}", epochs=0)
    stage = {k: IMAGES[k] for k in ("model", "trainer")}
    stages = [
        {"name": "own", **stage},
        {"name": "backbone", "features": None, "backbone": str(two)},
        {"name": "head", **stage},
    ]
    config = {k: IMAGES[k] for k in ("dataset", "run")} | {"stages": stages}
    with monkeypatch.context() as patch:
        patch.setattr("trainers.pipelines.stages.fit", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainers.train(config, tmp_path / "run", progress=False)
    shutil.rmtree(others)
    result = trainers.resume(tmp_path / "run", progress=False)
    found = trainers.evaluate(tmp_path / "run")
    assert found["test_accuracy"] == result.metrics["test_accuracy"]


@pytest.mark.slow
def test_a_stage_of_a_pipeline_outlives_its_reference(first, tmp_path):
    stage = {"name": "policy", "model": TEXT["model"], "trainer": POLICY}
    stage["trainer"] = POLICY | {"reference": str(first)}
    config = {k: TEXT[k] for k in ("dataset", "run")} | {"stages": [stage]}
    result = trainers.train(config, tmp_path / "run", progress=False)
    shutil.rmtree(first)
    found = trainers.evaluate(tmp_path / "run")
    assert found["test_kl"] == result.metrics["test_kl"]


@pytest.mark.slow
def test_an_older_run_follows_its_links_and_names_a_missing_run(first, tmp_path):
    held = TEXT | {"trainer": POLICY | {"reference": str(first)}}
    run = train(held, tmp_path / "run", f"start={first}")
    shutil.rmtree(run / "linked")
    shutil.rmtree(run / "checkpoints" / "0")
    before = trainers.evaluate(run)
    assert before["test_kl"] > 0
    first.rename(tmp_path / "elsewhere")
    said = f"reference: {first} holds no run, and {run} keeps no copy of it: move it back"
    with pytest.raises(UserError, match=said):
        trainers.evaluate(run)
    config = json.loads((run / "config.json").read_text())
    config["trainer"]["reference"] = "random"  # Of the same size.
    (run / "config.json").write_text(json.dumps(config))
    assert trainers.evaluate(run) == before
    reset(run, -1)
    said = f"start: {first} holds no run, and {run} has no checkpoint to continue from"
    with pytest.raises(UserError, match=said):
        trainers.resume(run, progress=False)


@pytest.mark.slow
def test_a_replaced_run_keeps_nothing_of_the_old_one(tmp_path):
    one = train(IMAGES, tmp_path / "one", epochs=0)
    two = train(IMAGES, tmp_path / "two", "seed=1", epochs=0)
    run = train(IMAGES, tmp_path / "run", f"features={one}")
    config = IMAGES | {"features": str(two)}
    trainers.train(config, run, overwrite=True, progress=False)
    kept, given = (
        restored(RunDirectory(path), best=True).state.params
        for path in (run / "linked" / "features", two)
    )
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(given), strict=True):
        np.testing.assert_array_equal(a, b)
    experiment = open_experiment(config_of(RunDirectory(run)), RunDirectory(run))
    fresh = trainers.train(config, tmp_path / "fresh", progress=False)
    assert trainers.evaluate(run)["test_accuracy"] == fresh.metrics["test_accuracy"]
    assert jnp.isfinite(experiment.test["image"]).all()
    trainers.train(IMAGES, run, overwrite=True, progress=False)
    assert not (run / "linked").exists()


def test_a_failed_copy_leaves_a_usable_folder(tmp_path, monkeypatch):
    one = train(IMAGES, tmp_path / "one", epochs=0)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copytree", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(IMAGES, tmp_path / "run", f"features={one}")
    train(IMAGES, tmp_path / "run", f"features={one}")

"""Pipelines: stages in order, on features computed once, resumed bit for bit."""

import copy
import json
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import input_pipeline
import models
import trainers
from grlu.errors import Interrupted, RunError, UserError
from trainers.config.load import to_json
from trainers.loop.run_dir import RunDirectory
from trainers.pipelines.links import config_of
from trainers.pipelines.open import open_experiment, restored


def config():
    return {
        "seed": 3,
        "dataset": {"name": "digits"},
        "stages": [
            {
                "name": "slow",
                "model": {"name": "mlp", "hidden": [24]},
                "trainer": {
                    "name": "evolution",
                    "population": 64,
                    "rank": 1,
                    "epochs": 2,
                    "batch_size": 32,
                    "optimizer": "adam",
                    "learning_rate": 2e-2,
                },
            },
            {
                "name": "fast",
                "model": {"name": "mlp", "hidden": []},
                "trainer": {
                    "name": "grlu",
                    "samples": 8,
                    "epochs": 3,
                    "learning_rate": 2e-3,
                },
            },
        ],
        "run": {"rows_per_epoch": 4},
    }


@pytest.fixture
def slow_fast():
    """Pipeline: a backbone by evolution, and a linear head by GRLU on its features."""
    return config()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Result of that pipeline, to read or to copy."""
    return trainers.train(config(), tmp_path_factory.mktemp("pipeline") / "run", progress=False)


def test_a_pipeline_is_a_folder_of_runs(trained, files):
    run = trained.run_dir
    assert trained.metrics["test_accuracy"] > 0.5
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stages"]["fast"]["test_accuracy"] == trained.metrics["test_accuracy"]
    whole = trainers.evaluate(run)
    assert whole["test_accuracy"] == trained.metrics["test_accuracy"]
    assert whole["step"] == trained.step == 3 * 1257
    for name in ("slow", "fast"):
        stage = trainers.evaluate(run / "stages" / name)
        assert stage["test_accuracy"] == summary["stages"][name]["test_accuracy"]

    before = files(run / "stages")
    again = trainers.resume(run, progress=False)
    assert (again.step, again.metrics) == (trained.step, trained.metrics)
    assert files(run / "stages") == before


def test_features_are_what_the_frozen_model_encodes(trained):
    own = RunDirectory(trained.run_dir / "stages" / "fast")
    experiment = open_experiment(config_of(own), own)
    slow = RunDirectory(trained.run_dir / "stages" / "slow")
    params = restored(slow, best=True).state.params
    data = input_pipeline.load("digits")
    layer = params["layers"][0]
    codes = {}
    for split in ("train", "validation", "test"):
        x = np.asarray(models.layers.layer_norm(data.preprocess(getattr(data, split))["image"]))
        kernel, bias = (np.asarray(layer[name][...]) for name in ("kernel", "bias"))
        codes[split] = np.maximum(x @ kernel + bias[None], 0)
    mean, sd = codes["train"].mean(0), codes["train"].std(0)
    sd = np.maximum(sd, 0.1 * np.sqrt((sd**2).mean()))
    for split in codes:
        found = getattr(experiment, split)
        np.testing.assert_allclose(found["image"], (codes[split] - mean) / sd, atol=1e-3)
        np.testing.assert_array_equal(found["label"], getattr(data, split)["label"])


@pytest.mark.slow
def test_each_seed_has_its_own_backbone(slow_fast, tmp_path):
    slow_fast["run"]["seeds"] = 2
    slow_fast["stages"][0]["trainer"]["epochs"] = 1
    slow_fast["stages"][1]["trainer"] |= {"epochs": 1, "batch_size": 1}
    both = trainers.train(slow_fast, tmp_path / "both", progress=False)
    alone = []
    for i in range(2):
        config = slow_fast | {"seed": 3 + i, "run": {"rows_per_epoch": 4}}
        alone.append(trainers.train(config, tmp_path / str(i), progress=False).metrics)
    for name in ("test_reward", "validation_reward"):
        mean = np.mean([m[name] for m in alone])
        np.testing.assert_allclose(both.metrics[name], mean, rtol=0.02)
    assert trainers.evaluate(tmp_path / "both")["test_accuracy"] == both.metrics["test_accuracy"]


def test_a_stage_may_use_and_change_the_original_data(slow_fast, tmp_path):
    slow_fast["stages"][1] |= {"features": None, "dataset": {"classes": [1, 2], "per_class": 20}}
    config = trainers.resolve(slow_fast)
    run = RunDirectory(tmp_path / "run")
    trainers.train(config, run.path, progress=False)
    fast = open_experiment(config_of(run.stage("fast")), run.stage("fast"))
    assert fast.train["image"].shape == (40, 8, 8, 1)
    assert set(fast.test["label"]) == {1, 2}
    assert "features" not in config_of(run.stage("fast"))


def test_an_untrained_backbone_is_a_control(slow_fast, tmp_path, files):
    slow_fast["stages"][0]["trainer"]["epochs"] = 0
    trainers.train(slow_fast, tmp_path / "run", progress=False)
    assert trainers.evaluate(tmp_path / "run" / "stages" / "slow")["step"] == 0
    before = files(tmp_path / "run" / "stages" / "slow")
    trainers.resume(tmp_path / "run", progress=False)
    assert files(tmp_path / "run" / "stages" / "slow") == before


@pytest.mark.slow
def test_a_backbone_may_come_from_another_run(slow_fast, trained, tmp_path):
    whole = shutil.copytree(trained.run_dir, tmp_path / "whole")
    change = [f"stages.slow.backbone={whole / 'stages' / 'slow'}"]
    again = trainers.train(slow_fast, tmp_path / "again", overrides=change, progress=False)
    assert again.metrics == trained.metrics
    shutil.rmtree(tmp_path / "whole")
    assert trainers.evaluate(tmp_path / "again")["test_accuracy"] == again.metrics["test_accuracy"]

    slow_fast["dataset"]["flatten"] = True
    with pytest.raises(UserError, match=r"stage 'slow': .*holds no run"):
        trainers.train(slow_fast, tmp_path / "x", overrides=change, progress=False)
    change = [f"stages.slow.backbone={tmp_path / 'again'}"]
    with pytest.raises(UserError, match=r"is a pipeline: name one of its stages"):
        trainers.train(slow_fast, tmp_path / "x", overrides=change, progress=False)


def test_a_stage_outlives_the_backbone_that_it_started_from(slow_fast, tmp_path):
    slow_fast["stages"] = slow_fast["stages"][1:]
    slow_fast["stages"][0]["trainer"] |= {"epochs": 0, "samples": 4, "batch_size": 32}
    trainers.train(slow_fast, tmp_path / "first", progress=False)
    first = tmp_path / "first" / "stages" / "fast"
    slow_fast["stages"] = [
        {"name": "first", "backbone": str(first)},
        {"name": "second", "start": "first", "trainer": {"epochs": 1}},
    ]
    trainers.train(slow_fast, tmp_path / "both", progress=False)
    second = RunDirectory(tmp_path / "both" / "stages" / "second")
    config = config_of(second)
    assert (config.trainer.name, config.trainer.samples, config.trainer.epochs) == ("grlu", 4, 1)
    begun = open_experiment(config, second, begun=False).init()
    expected = restored(RunDirectory(first), best=False).state.params
    assert all(map(jnp.array_equal, jax.tree.leaves(expected), jax.tree.leaves(begun.params)))
    shutil.rmtree(tmp_path / "first")
    assert trainers.evaluate(tmp_path / "both")["step"] > 0


def test_a_backbone_whose_shapes_do_not_fit_is_refused(slow_fast, tmp_path, monkeypatch):
    def tiny(*, validation: int = 0, normalize: str = "unit", flatten: bool = True):
        """6x6 images."""
        examples = {
            "image": np.zeros((40, 6, 6, 1), np.uint8),
            "label": np.arange(40, dtype=np.int32) % 10,
        }
        return input_pipeline.data.image_data(
            "tiny",
            examples,
            examples,
            10,
            validation=validation,
            split_seed=0,
            subset=None,
            normalize=normalize,
            flatten=flatten,
        )

    monkeypatch.setitem(input_pipeline.DATASETS, "tiny", tiny)
    slow_fast["stages"][0]["trainer"]["epochs"] = 0
    trainers.train(slow_fast, tmp_path / "digits", progress=False)
    slow = tmp_path / "digits" / "stages" / "slow"
    other = slow_fast | {"dataset": {"name": "tiny"}}
    change = [f"stages.slow.backbone={slow}"]
    with pytest.raises(UserError, match=r"takes examples of shape \(64,\), but .* \(36,\)"):
        trainers.train(other, tmp_path / "tiny", overrides=change, progress=False)
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["stages.slwo.trainer.epochs=1"], "no stage 'slwo'; did you mean 'slow'"),
        (["stages.slow.trainer.popluation=4"], "'slow': trainer has no key .* 'population'"),
        (["stages.fast.model.name=mpl"], "stage 'fast': .* did you mean 'mlp'"),
        (["stages.fast.features=slwo"], "'fast': features must name an earlier stage.* 'slow'"),
        (["stages.fast.features=fast"], "'fast': features must name an earlier stage"),
        (["stages.fast.start=fats"], "'fast': start must name an earlier stage"),
        (["stages.fast.feature=slow"], "no section 'feature'; did you mean 'features'"),
        (["stages.fast"], "section.key=value"),
        (["trainer.epochs=1"], "no section 'trainer' except in .*NAME.trainer"),
        (["stages.slow.model.name=autoencoder"], "'slow': .*trainer.objective=reconstruction"),
        (["stages.fast.trainer.batch_size=5000"], "'fast': .*has only 1257"),
        (["stages.fast.dataset.clases=[1]"], "stage 'fast': dataset has no key 'clases'"),
        (["stages.fast.run.seeds=3", "stages.slow.run.seeds=2"], "'fast': run.seeds must equal"),
        (["stages.fast.start=slow", "stages.fast.model.hidden=[8]"], "'fast': start: the weights"),
        (["stages.slow.model.name=local_mlp"], "'fast': a LocalMLP has no features"),
        (["stages.slow.trainer.objective=slow"], "objective must be one of bandit, classification"),
        (["stages.fast.trainer.objective=fast_learner"], "use trainer.name=evolution"),
        (
            ["stages.slow.model.name=autoencoder", "stages.slow.trainer.objective=reconstruction"],
            "set dataset.normalize=unit",
        ),
    ],
)
def test_mistakes_in_stages_are_refused_before_anything_is_written(
    change, message, slow_fast, tmp_path
):
    with pytest.raises(UserError, match=message):
        trainers.train(slow_fast, tmp_path / "run", overrides=change, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_config_of_stages_reads_back_equal(slow_fast, tmp_path):
    config = trainers.resolve(slow_fast, ["stages.fast.trainer.samples=4", "seed=5"])
    path = tmp_path / "config.json"
    path.write_text(to_json(config))
    assert [s["name"] for s in json.loads(path.read_text())["stages"]] == ["slow", "fast"]
    assert json.loads(path.read_text())["stages"][1]["trainer"]["samples"] == 4
    assert trainers.resolve(path) == config


@pytest.mark.slow
def test_a_pipeline_stopped_in_each_stage_resumes_bit_identically(
    slow_fast, trained, tmp_path, monkeypatch, files, same_run
):
    write, run = trainers.loop.loop.MetricsTable.write, tmp_path / "stopped"
    # Of the 8 rows of the first stage and the 12 of the second.
    rows = iter(range(1, 21))

    def stopping(self, row):
        write(self, row)
        if next(rows) in (3, 10):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trainers.loop.loop.MetricsTable, "write", stopping)
    with pytest.raises(Interrupted, match=rf"grlu resume {re.escape(str(run))}'"):
        trainers.train(slow_fast, run, progress=False)
    assert not (run / "stages" / "fast").exists()
    with pytest.raises(Interrupted):
        trainers.resume(run, progress=False)
    before = files(run / "stages" / "slow")
    trainers.resume(run, progress=False)
    assert files(run / "stages" / "slow") == before
    same_run(trained.run_dir, run)


@pytest.mark.slow
def test_a_pipeline_killed_in_each_stage_resumes_bit_identically(
    slow_fast, trained, tmp_path, grlu_command, interrupt, files, same_run
):
    config, run = tmp_path / "small.json", tmp_path / "killed"
    config.write_text(to_json(trainers.resolve(slow_fast)))
    slow, fast = (run / "stages" / name for name in ("slow", "fast"))
    interrupt(slow / "metrics.csv", 2, "train", config, "--run", run)
    interrupt(fast / "metrics.csv", 2, "resume", run)
    before = files(slow)
    process = grlu_command("resume", run, "--quiet")
    assert process.wait() == 0, process.output("stderr")
    assert files(slow) == before
    same_run(trained.run_dir, run)


def test_non_finite_members_stop_the_run_or_are_dropped(slow_fast, tmp_path):
    """Noise that overflows in some members gives real non-finite values."""
    slow = slow_fast["stages"][0]
    slow["model"]["layer_norm"] = False
    slow["trainer"] |= {"sigma": 4e17, "rank": None, "epochs": 1}
    with pytest.raises(RunError, match=r"not finite appeared .* no checkpoint was"):
        trainers.train(slow_fast, tmp_path / "stop", progress=False)
    slow["trainer"]["nan"] = "drop"
    result = trainers.train(slow_fast, tmp_path / "drop", progress=False)
    assert result.metrics["test_accuracy"] > 0.3


def test_a_constant_reward_is_reported(slow_fast, tmp_path, monkeypatch):
    monkeypatch.setitem(trainers.REWARDS, "flat", lambda logits, labels: 0.0 * logits[:, 0])
    slow_fast["stages"][0]["trainer"]["reward"] = "flat"
    slow_fast["stages"][1]["trainer"]["epochs"] = 1
    trainers.train(slow_fast, tmp_path / "run", progress=False)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("no signal") == 1
    assert "no signal" not in (tmp_path / "run" / "stages" / "fast" / "log.txt").read_text()


@pytest.mark.slow
def test_a_sequence_of_tasks_reports_accuracies_and_forgetting(slow_fast, tmp_path):
    stages = slow_fast["stages"]
    stages[0]["trainer"]["epochs"] = 0
    head = stages.pop()
    head["trainer"] |= {"epochs": 2, "learning_rate": 5e-3}
    slow_fast["dataset"] |= {"renumber": True, "per_class": 100}
    stages.append(head | {"name": "task1", "dataset": {"classes": [0, 1]}})
    stages.append({"name": "task2", "start": "task1", "dataset": {"classes": [2, 3]}})
    stages.append({"name": "task3", "start": "task2", "dataset": {"classes": [4, 5]}})
    slow_fast["run"]["seeds"] = 2
    trainers.train(slow_fast, tmp_path / "run", progress=False)
    found = trainers.evaluate(tmp_path / "run")["continual"]
    assert found == json.loads((tmp_path / "run" / "summary.json").read_text())["continual"]
    assert found["tasks"] == ["task1", "task2", "task3"]
    matrix = np.array(found["accuracy"])
    for i, name in enumerate(found["tasks"]):
        own = trainers.evaluate(tmp_path / "run" / "stages" / name)["test_accuracy"]
        np.testing.assert_allclose(matrix[i, i], own, atol=1e-6)
        assert own > 0.6
    assert found["average_accuracy"] == pytest.approx(matrix[2].mean())
    run = RunDirectory(tmp_path / "run")
    assert config_of(run.stage("task3")).trainer.samples == 8
    assert config_of(run.stage("task3")).features == "../slow"
    first, second = (restored(run.stage(f"task{i}"), best=False).state for i in (1, 2))
    second_task = run.stage("task2")
    begun = open_experiment(config_of(second_task), second_task, begun=False).init()
    for a, b, c in zip(*(jax.tree.leaves(s.params) for s in (first, begun, second)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (b != c).any()


def test_forgetting_is_the_drop_from_the_best_accuracy():
    matrix = np.array([[0.9, 0.1, 0.2], [0.5, 0.8, 0.1], [0.3, 0.9, 0.7]])[..., None]
    found = trainers.pipelines.forgetting.forgetting(matrix)
    np.testing.assert_allclose(found, [((0.9 - 0.3) + (0.8 - 0.9)) / 2])


def test_training_does_not_change_the_config(slow_fast, tmp_path):
    given = copy.deepcopy(slow_fast)
    trainers.resolve(slow_fast, ["stages.fast.trainer.samples=4"])
    assert slow_fast == given


def test_another_name_drops_the_keys_of_the_file_in_every_stage(slow_fast):
    slow_fast["stages"].append({"name": "more", "start": "fast"})
    changes = ["stages.fast.trainer.name=backprop", "stages.slow.model.name=skip_mlp"]
    config = trainers.resolve(slow_fast, changes)
    _, fast, more = config.stages
    assert fast["trainer"] == more["trainer"]
    assert "samples" not in more["trainer"]
    assert "hidden" not in config.stages[0]["model"]
    assert trainers.resolve(config) == config
    slow_fast["dataset"]["split_seeds"] = 4
    with pytest.raises(UserError, match="did you mean 'split_seed'"):
        trainers.resolve(slow_fast)
    del slow_fast["dataset"]["split_seeds"]
    other = trainers.resolve(slow_fast, ["dataset.name=mnist"])
    assert trainers.resolve(other) == other


def test_a_stage_with_another_objective_takes_over_the_other_keys(slow_fast, caplog):
    slow_fast["stages"].append({"name": "more", "start": "slow"})
    slow_fast["stages"][0]["trainer"]["reward"] = "probability"
    change = ["stages.more.trainer.objective=reconstruction"]
    config = trainers.resolve(slow_fast, change)
    slow, _, more = (dict(stage["trainer"]) for stage in config.stages)
    assert slow.pop("reward") == "probability"
    own = {"objective": "reconstruction", "likelihood": "bernoulli", "sd": 1.0}
    assert more == slow | own
    assert trainers.resolve(config) == config
    assert not caplog.text
    trainers.resolve(slow_fast, ["stages.slow.trainer.objective=reconstruction"])
    assert "trainer 'evolution' with 'reconstruction' has no reward: dropped" in caplog.text


FORBIDDEN = ("grad", "value_and_grad", "jvp", "linearize", "jacrev", "jacfwd", "hessian")


@pytest.mark.slow
def test_without_backprop_no_gradient_crosses_a_layer(tmp_path, monkeypatch):
    """The only VJP left, a layer's local update, reaches only that layer."""

    def forbidden(*args, **kwargs):
        raise AssertionError("a gradient was asked for")

    for name in FORBIDDEN:
        monkeypatch.setattr(jax, name, forbidden)
        if hasattr(trainers.gradient.trainer.nnx, name):
            monkeypatch.setattr(trainers.gradient.trainer.nnx, name, forbidden)
    vjp, reached = jax.vjp, []

    def watched(fn, *primals, **options):
        assert len(primals) == 1
        out, pull, *aux = vjp(fn, *primals, **options)
        assert isinstance(out, list), "the reward itself was to be differentiated"
        rows = []
        for site in range(len(out)):
            # Credit of one site, and of no other.
            only = [jnp.ones_like(z) if i == site else jnp.zeros_like(z) for i, z in enumerate(out)]
            leaves = jax.tree.leaves(pull(only))
            rows.append(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))
        paths = jax.tree_util.tree_flatten_with_path(primals[0])[0]
        layers = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
        layers = [name.removesuffix(".value").rpartition(".")[0] for name in layers]
        jax.debug.callback(lambda rows: reached.append((layers, rows)), jnp.stack(rows))
        return out, pull, *aux

    monkeypatch.setattr(jax, "vjp", watched)
    small = ["dataset.subset=64", "stages.slow.trainer.epochs=2", "stages.fast.trainer.epochs=1"]
    small += ["stages.fast.model.hidden=[16]", "stages.slow.trainer.population=8"]
    trainers.train("digits_slow_fast", tmp_path, overrides=small, progress=False)
    jax.effects_barrier()
    assert len(reached) >= 64
    moved = set()
    for layers, rows in reached:
        for row in rows:
            found = {layer for layer, size in zip(layers, row, strict=True) if size > 0}
            assert len(found) <= 1, found
            moved |= found
    assert len(moved) == 2

    small[-1] = "stages.slow.trainer.name=backprop"
    with pytest.raises(AssertionError, match="a gradient was asked for"):
        trainers.train("digits_slow_fast", tmp_path / "b", overrides=small, progress=False)

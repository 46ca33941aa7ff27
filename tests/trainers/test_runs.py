"""Whole runs: every trainer, bit-identical resume, real signals and processes."""

import json
import random
import shutil
import signal

import jax
import numpy as np
import pytest

import trainers
from checkpoints import Checkpoints
from grlu.errors import Interrupted, RunError, UserError
from trainers.config.load import to_json
from trainers.gradient.settings import GradientSettings
from trainers.loop.run_dir import RunDirectory, latest_metrics, read_metrics
from trainers.pipelines.open import restored


@pytest.mark.parametrize(
    "name",
    [
        n if n in ("backprop", "grlu") else pytest.param(n, marks=pytest.mark.slow)
        for n, entry in trainers.TRAINERS.items()
        if issubclass(entry.settings, GradientSettings) and n != "svi"
    ],
)
def test_every_trainer_learns_digits_and_leaves_a_complete_run(name, small, request, tmp_path):
    config = small | {"trainer": small["trainer"] | {"name": name}}
    if name not in ("grlu", "forward_gradient"):
        del config["trainer"]["samples"]
    if name == "evolution":
        config["trainer"] |= {"population": 48, "rank": 1, "learning_rate": 0.01}
    if name == "backprop":  # With noisy passes, sorting takes long.
        config["model"] = small["model"] | {"activation": "topk"}
    run, steps = tmp_path / "run", 6 * (1257 // 8)
    if name == "grlu":
        run = request.getfixturevalue("whole")
    else:
        result = trainers.train(config, run, progress=False)
        assert (result.step, result.metrics) == (steps, latest_metrics(run / "metrics.csv"))

    rows = read_metrics(run / "metrics.csv")
    assert [int(r["step"]) for r in rows][-1] == steps
    assert len(rows) == 6 * 4
    assert sum(bool(r["validation_accuracy"]) for r in rows) == 6
    assert sum(bool(r["test_accuracy"]) for r in rows) == 1
    assert "layers/0/kernel" in (run / "log.txt").read_text()
    assert list(run.glob("events.out.tfevents.*"))
    assert json.loads((run / "config.json").read_text())["seed"] == 3

    again = trainers.evaluate(run)
    # Noise on all 1,818 weights at once says little about each.
    assert again["test_accuracy"] > (0.5 if name == "weight_perturbation" else 0.85)
    assert again["test_accuracy"] == latest_metrics(run / "metrics.csv")["test_accuracy"]
    assert again["step"] == steps


def test_the_best_checkpoint_has_the_highest_validation_accuracy(whole):
    rows = read_metrics(whole / "metrics.csv")
    by_validation = {int(r["step"]): r["validation_accuracy"] for r in rows}
    best = trainers.evaluate(whole, best=True)
    assert by_validation[best["step"]] == max(v for v in by_validation.values() if v)


def test_a_run_is_determined_by_its_seed_and_compiles_its_step_once(
    small, whole, tmp_path, same_run, caplog
):
    with jax.log_compiles(), caplog.at_level("WARNING"):
        trainers.train(small, tmp_path / "same", progress=False)
    compiled = [r for r in caplog.records if "Compiling" in r.getMessage()]
    assert sum("jit(chunk)" in r.getMessage() for r in compiled) == 1
    same_run(whole, tmp_path / "same")
    trainers.train(small | {"seed": 4}, tmp_path / "other", progress=False)
    runs = (RunDirectory(run) for run in (whole, tmp_path / "other"))
    a, b = (jax.tree.leaves(restored(run, best=False).state.params) for run in runs)
    assert any((x != y).any() for x, y in zip(a, b, strict=True))


@pytest.mark.slow
def test_several_seeds_equal_separate_runs(small, tmp_path):
    small["trainer"]["epochs"] = 1
    small["trainer"]["optimizer"] = "sgd"
    small["run"]["seeds"] = 2
    whole = trainers.train(small, tmp_path / "all", progress=False)
    alone = [
        trainers.train(
            small | {"seed": 3 + i, "run": {"rows_per_epoch": 4}}, tmp_path / str(i), progress=False
        ).metrics
        for i in range(2)
    ]
    rewards = [m["test_reward"] for m in alone]
    np.testing.assert_allclose(whole.metrics["test_reward"], np.mean(rewards), atol=1e-3)
    np.testing.assert_allclose(whole.metrics["test_reward_sd"], np.std(rewards, ddof=1), atol=1e-3)
    assert trainers.evaluate(tmp_path / "all")["test_accuracy"] == whole.metrics["test_accuracy"]


@pytest.fixture
def run(whole, tmp_path):
    """Copy of the finished run that a test may change."""
    return shutil.copytree(whole, tmp_path / "run")


def test_resuming_a_finished_run_only_reads_it(run):
    before = (run / "metrics.csv").read_bytes()
    again = trainers.resume(run, progress=False)
    assert (again.step, again.metrics) == (6 * 157, latest_metrics(run / "metrics.csv"))
    assert (run / "metrics.csv").read_bytes() == before


def test_a_run_killed_and_stopped_at_random_steps_resumes_bit_identically(
    small, whole, tmp_path, grlu_command, interrupt, same_run
):
    config, run = tmp_path / "small.json", tmp_path / "run"
    config.write_text(to_json(trainers.resolve(small)))
    chance = random.Random()
    seed = chance.randrange(2**32)
    print("seed of the rows:", seed)
    chance.seed(seed)
    numbers = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
    # The last of the run's 24 rows leave it time to receive the signal.
    rows = sorted(chance.sample(range(2, 14), len(numbers)))
    for i, (number, row) in enumerate(zip(numbers, rows, strict=True)):
        command = ("resume", run) if i else ("train", config, "--run", run)
        process = interrupt(run / "metrics.csv", row, *command, number=number)
        if number != signal.SIGKILL:
            assert process.returncode == 128 + number
            assert f"grlu resume {run}" in " ".join(process.output("stderr").split())
            with Checkpoints(run / "checkpoints") as checkpoints:
                last = read_metrics(run / "metrics.csv")[-1]
                assert checkpoints.latest_step == int(last["step"])
    process = grlu_command("resume", run, "--quiet")
    assert process.wait() == 0, process.output("stderr")
    same_run(whole, run)


def test_a_run_stopped_by_a_signal_resumes_bit_identically(
    small, whole, tmp_path, monkeypatch, same_run
):
    def stop_after(rows):
        write, count = trainers.loop.loop.MetricsTable.write, iter(range(rows + 1))

        def counted(self, row):
            write(self, row)
            if next(count, None) == rows - 1:
                signal.raise_signal(signal.SIGINT)

        return counted

    run = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(trainers.loop.loop.MetricsTable, "write", stop_after(7))
        with pytest.raises(Interrupted, match="grlu resume"):
            trainers.train(small, run, progress=False)
    trainers.resume(run, progress=False)
    same_run(whole, run)


def test_a_truncated_checkpoint_is_skipped(run, whole, same_run):
    with Checkpoints(run / "checkpoints") as checkpoints:
        newest = checkpoints.latest_step
    folder = run / "checkpoints" / str(newest)
    for file in sorted(folder.rglob("*"), key=lambda f: f.stat().st_size)[-3:]:
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    trainers.resume(run, progress=False)
    assert "checkpoint" in (run / "log.txt").read_text().split("parameters")[-1]
    same_run(whole, run)


def test_a_non_finite_value_stops_the_run_and_names_the_step(small, tmp_path):
    """Noise of 1e38 overflows the logits to a real NaN."""
    small["trainer"] |= {"optimizer": "sgd", "learning_rate": 1e38, "schedule": "constant"}
    with pytest.raises(RunError, match=r"not finite appeared at step \d+ .* no checkpoint was"):
        trainers.train(small, tmp_path / "run", progress=False)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        trainers.evaluate(tmp_path / "run")


def test_the_last_good_checkpoint_survives_a_nan(small, tmp_path):
    """A warm-up raises the rate until the run fails in a later epoch."""
    small["trainer"] |= {
        "optimizer": "sgd",
        "learning_rate": 1e38,
        "schedule": "warmup_cosine",
        "schedule_per": "epoch",
        "warmup": 0.5,
    }
    with pytest.raises(RunError, match="the checkpoint of step 157 is kept"):
        trainers.train(small, tmp_path / "run", progress=False)
    assert trainers.evaluate(tmp_path / "run")["step"] == 157


def test_a_folder_with_a_run_is_refused_without_overwrite(small, run):
    small["trainer"]["epochs"] = 1
    with pytest.raises(UserError, match=r"already holds a run.*--overwrite"):
        trainers.train(small, run, progress=False)
    (run / "notes.txt").write_text("mine")
    assert trainers.train(small, run, overwrite=True, progress=False).step == 157
    assert (run / "notes.txt").read_text() == "mine"


def test_a_folder_with_other_files_is_refused(small, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="holds no run"):
        trainers.train(small, tmp_path, overwrite=True, progress=False)
    assert (tmp_path / "thesis.tex").exists()


def test_an_unwritable_folder_is_refused(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the run"):
        trainers.train(small, tmp_path / "file" / "run", progress=False)


def test_a_config_that_does_not_fit_the_checkpoint_is_refused(run):
    path = run / "config.json"
    config = json.loads(path.read_text())
    config["model"]["hidden"] = [25]
    path.write_text(json.dumps(config))
    for use in (trainers.resume, trainers.evaluate):
        with pytest.raises(UserError, match="config and checkpoint don't match"):
            use(run)


def test_a_folder_without_a_run_is_refused(tmp_path):
    for use in (trainers.resume, trainers.evaluate):
        with pytest.raises(UserError, match="holds no run"):
            use(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("trainer.batch_size=5000", "has only 1257 training examples"),
        ("trainer.batch_size=0", "batch_size must be at least 1"),
        ("trainer.epochs=-1", "epochs must be at least 0"),
        ("trainer.learning_rate=-0.1", "learning_rate must be at least 0"),
        ("trainer.reward=applause", "trainer.reward must be one of"),
        ("trainer.samples=0", "samples must be a positive integer"),
        ("trainer.sigma=0", "sigma must be positive"),
        ("trainer.clip=0", "clip must be positive"),
        ("trainer.average=1.5", "average must be between 0 and 1"),
        ("trainer.schedule=cosin", "trainer.schedule must be"),
        ("trainer.smaples=3", "did you mean 'samples'"),
        ("trainer.name=gelu", "did you mean 'grlu'"),
        ("model.topk=1.5", r"must lie in \(0, 1\]"),
        ("model.hidden=[0]", "positive layer sizes"),
        ("model.name=mpl", "did you mean 'mlp'"),
        ("dataset.name=mnits", "the nearest is 'mnist'"),
        ("dataset.flatten=false", "set dataset.flatten=true"),
        ("run.keep_last=0", "keep_last must be at least 1"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(change, sentence, small, tmp_path):
    small["model"]["activation"] = "topk"
    with pytest.raises(UserError, match=sentence):
        trainers.train(small, tmp_path / "run", overrides=[change], progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_mnist_learns(data_dir, tmp_path):
    """Train on 5,000 images with batch size 1."""
    result = trainers.train(
        "mnist_grlu",
        tmp_path / "run",
        overrides=[f"dataset.data_dir={data_dir}", "dataset.subset=5000", "trainer.epochs=1"],
        progress=False,
    )
    assert result.metrics["test_accuracy"] > 0.82

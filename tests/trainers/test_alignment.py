"""Alignment along training: the cosine of a rule's estimates to the exact gradient."""

import pytest

import trainers
from grlu.errors import UserError
from trainers.loop.run_dir import read_metrics


def config(every, **trainer):
    return {
        "dataset": {"name": "digits", "subset": 160, "validation": 40},
        "model": {"name": "sparse_mlp", "hidden": (40, 40), "winners": (4,)},
        "trainer": {"name": "grlu", "noise": "orthogonal", "epochs": 4, "batch_size": 4, **trainer},
        "run": {"alignment_every": every, "rows_per_epoch": 2},
    }


@pytest.mark.parametrize(
    ("samples", "lowest", "highest"),
    [("auto", 0.999, 1.001), (2, 0.05, 0.9)],
    ids=["exact credit", "fewer directions than active units"],
)
def test_alignment_is_logged_at_the_epochs_asked_for(samples, lowest, highest, tmp_path):
    result = trainers.train(
        config(2, samples=samples, sigma=1e-2), tmp_path / "run", progress=False
    )
    rows = read_metrics(result.run_dir / "metrics.csv")
    found = {float(row["epoch"]): row["train_alignment"] for row in rows}
    assert [epoch for epoch, value in found.items() if value] == [2.0, 4.0]
    for epoch in (2.0, 4.0):
        assert lowest < float(found[epoch]) < highest


def test_alignment_of_backprop_is_one_and_absent_unless_asked_for(small, tmp_path):
    small["trainer"] |= {"name": "backprop", "epochs": 1}
    del small["trainer"]["samples"]
    small["run"]["alignment_every"] = 1
    aligned = trainers.train(small, tmp_path / "aligned", progress=False).metrics
    assert aligned["train_alignment"] == pytest.approx(1, abs=1e-6)
    small["run"]["alignment_every"] = 0
    plain = trainers.train(small, tmp_path / "plain", progress=False).metrics
    assert plain == {k: v for k, v in aligned.items() if k != "train_alignment"}


def test_a_trainer_without_a_rule_is_refused(tmp_path):
    policy = {"name": "grpo", "epochs": 1, "batch_size": 4}
    model = {"name": "gpt", "layers": 1, "heads": 1, "width": 8}
    whole = {"dataset": {"name": "copy"}, "model": model, "trainer": policy}
    with pytest.raises(UserError, match="PolicyTrainer has no such rule: set it to 0"):
        trainers.train(whole | {"run": {"alignment_every": 1}}, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()

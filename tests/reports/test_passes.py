"""Forward passes per example against values computed by hand."""

import dataclasses

import pytest

import trainers
from reports.passes import passes_per_example

GRLU = {"name": "grlu", "samples": 16}


@pytest.mark.parametrize(
    ("trainer", "passes"),
    [
        ({"name": "backprop"}, 1),
        ({"name": "feedback_alignment"}, 1),
        (GRLU, 32),
        ({**GRLU, "antithetic": False}, 16),
        ({**GRLU, "layers": "apart"}, 96),
        ({**GRLU, "layers": "apart", "output": "delta"}, 64),
        ({"name": "weight_perturbation", "samples": 3}, 6),
        ({"name": "forward_gradient", "samples": 3}, 3),
        ({"name": "svi", "svi_steps": 20}, 21),
        ({"name": "evolution", "population": 64}, 64),
        ({"name": "evolution", "population": 64, "batches": "own"}, 2),
    ],
)
def test_passes_by_hand(trainer, passes):
    config = {"trainer": trainer, "model": {"name": "mlp", "hidden": [8, 8]}}
    assert passes_per_example(config)[0] == passes


def test_local_blocks_cost_no_more_apart():
    config = {"trainer": {**GRLU, "layers": "apart"}, "model": {"name": "local_mlp"}}
    assert passes_per_example(config)[0] == 32


@pytest.mark.parametrize("name", trainers.TRAINERS)
def test_every_trainer_has_known_passes(name):
    defaults = {f.name: f.default for f in dataclasses.fields(trainers.TRAINERS[name].settings)}
    assert passes_per_example({"trainer": {**defaults, "name": name}})[0] > 0


def test_unknown_passes_are_none():
    assert passes_per_example({"trainer": {"name": "mine"}}) is None
    assert passes_per_example({}) is None
    apart = {"trainer": {**GRLU, "layers": "apart"}, "model": {"name": "mine"}}
    assert passes_per_example(apart) is None

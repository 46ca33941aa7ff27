"""One run on several devices is the run on one: the same updates, but for rounding."""

import os
import pathlib
import subprocess
import sys

import pytest

import trainers
from grlu.errors import UserError
from trainers.devices import MeshSettings, placed

ROOT = pathlib.Path(__file__).parents[2]

# Trains three steps on each mesh named in the arguments, and on one device. Adam would blow up
# the rounding of gradients that are all but zero.
STEPS = """
import json, sys
import jax, numpy as np
import trainers
from trainers.compiled import compile_chunk, compile_evaluation
from trainers.devices import MeshSettings, placed

config, meshes = json.loads(sys.argv[1])

def trained(mesh):
    experiment = trainers.make_experiment(trainers.resolve({**config, "mesh": mesh}))
    where = placed(1, experiment.mesh)
    state = where.state(experiment.init())
    arrays = where.data(dict(experiment.train), by_seed=False)
    state, averages, broken = compile_chunk(experiment, where)(
        state, arrays, experiment.order(0)[:3], 3)
    assert int(broken) == -1 and int(state.step) == 3
    kept = compile_evaluation(experiment, where)(state, experiment.validation)
    if mesh.get("fully_sharded"):
        kernel = [x for x in jax.tree.leaves(state.opt_state) if x.shape == (64, 24)]
        assert kernel and all(x.addressable_shards[0].data.shape == (16, 24) for x in kernel)
    return jax.tree.leaves((state.params, averages, kept))

alone = trained({})
started = trainers.make_experiment(trainers.resolve(config)).init().params
moved = [np.abs(a - b).max() for a, b in zip(alone, jax.tree.leaves(started))]
assert max(moved) > 1e-3, moved
for mesh in meshes:
    for one, several in zip(alone, trained(mesh), strict=True):
        np.testing.assert_allclose(one, several, atol=1e-5, err_msg=str(mesh))
"""


def mesh(population, data, **more):
    return {"population": population, "data": data, **more}


def run_script(script, *arguments, devices=8):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=600,
    )


BOTH = (mesh(8, 1), mesh(1, 8), mesh(4, 2))
CASES = {
    "grlu": ({"name": "grlu", "samples": 8}, BOTH),
    "grlu_active": (
        {"name": "grlu", "samples": 8, "site": "active", "noise": "orthogonal"},
        (mesh(4, 2),),
    ),
    "grlu_published": (
        {"name": "grlu", "samples": 8, "site": "post", "inputs": "noisy"},
        (mesh(4, 2),),
    ),
    # 64 examples written to the first layer at once, by `Trainer.steps`.
    "grlu_online": ({"name": "grlu", "samples": 8, "batch_size": 1, "online_chunk": 4}, BOTH[:1]),
    "evolution": ({"name": "evolution", "population": 32, "rank": 1}, BOTH),
    "evolution_full": ({"name": "evolution", "population": 32, "chunk": 4}, BOTH[2:]),
    "weight_perturbation": ({"name": "weight_perturbation", "samples": 8}, BOTH[1:]),
    "forward_gradient": ({"name": "forward_gradient", "samples": 8}, BOTH[1:]),
    "forward_gradient_weight": (
        {"name": "forward_gradient", "samples": 8, "of": "weight"},
        BOTH[2:],
    ),
    "backprop": ({"name": "backprop"}, BOTH[1:2]),
    "backprop_sharded": (
        {"name": "backprop", "optimizer": "momentum"},
        (mesh(1, 4, fully_sharded=True),),
    ),
    "feedback_alignment": ({"name": "feedback_alignment"}, BOTH[1:2]),
}


@pytest.fixture
def tiny(small):
    small["model"]["activation"] = "tanh"  # Rounding could choose another winner of a top-k.
    small["trainer"] = {"batch_size": 8, "learning_rate": 0.1, "epochs": 1}
    return small


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_mesh_changes_nothing(case, tiny):
    import json

    trainer, meshes = CASES[case]
    tiny["trainer"] |= trainer
    done = run_script(STEPS, json.dumps([tiny, meshes]))
    assert done.returncode == 0, done.stderr


def test_every_trainer_is_tried_on_a_mesh():
    assert {trainer["name"] for trainer, _ in CASES.values()} == set(trainers.TRAINERS)

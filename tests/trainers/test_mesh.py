"""One run on several devices: the updates of one device, up to rounding."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import trainers
from grlu.errors import UserError
from trainers.loop.run_dir import RunDirectory, latest_metrics
from trainers.pipelines.open import restored

ROOT = pathlib.Path(__file__).parents[2]

# Two steps of every case on one device, and on its meshes.
STEPS = """
import dataclasses, json, sys
import jax, jax.numpy as jnp, numpy as np
import trainers
from trainers.loop.compiled import compile_chunk
from trainers.devices.mesh import MeshSettings, placed

def trained(experiment, start, mesh):
    experiment = dataclasses.replace(experiment, mesh=MeshSettings(**mesh))
    where = placed(1, experiment.mesh)
    first = jax.tree.leaves(jax.tree.map(np.array, start.params))
    state = where.state(jax.tree.map(jnp.copy, start))
    arrays = where.data(dict(experiment.train), by_seed=False)
    state, averages, (broken, _) = compile_chunk(experiment, where)(
        state, arrays, experiment.order(0)[:2], 2)
    assert int(broken) == -1 and int(state.step) == 2
    if mesh.get("fully_sharded"):
        # The optimizer's state, and a policy's reference and critic.
        kept = [getattr(state, name, None) for name in ("opt_state", "critic", "critic_opt",
                                                        "reference", "drawn_from")]
        for part in filter(None, kept):
            large = [x for x in jax.tree.leaves(part)
                     if any(n and n % mesh["data"] == 0 for n in x.shape)]
            assert large, part
            for x in large:
                assert x.addressable_shards[0].data.size * mesh["data"] == x.size, x.shape
    last = jax.tree.leaves(state.params)
    assert max(np.abs(a - b).max() for a, b in zip(first, last)) > 1e-3, config
    return last + jax.tree.leaves(averages)

for config, meshes in json.loads(sys.argv[1]):
    experiment = trainers.make_experiment(trainers.resolve(config))
    start = experiment.init()
    alone = trained(experiment, start, {})
    for mesh in meshes:
        for one, several in zip(alone, trained(experiment, start, mesh), strict=True):
            np.testing.assert_allclose(one, several, atol=1e-5, err_msg=f"{config} {mesh}")
"""


def mesh(population, data, **more):
    return {"population": population, "data": data, **more}


PLAIN = {
    "seed": 3,
    "dataset": {"name": "digits", "subset": 64},
    "model": {"name": "mlp", "hidden": (8,), "activation": "tanh"},
    "trainer": {"batch_size": 8, "learning_rate": 0.1, "epochs": 1},
}
POSTERIORS = {
    "dataset": {"normalize": "unit", "binarize": "dynamic"},
    "model": {"name": "vae_mlp", "latent": 2, "encoder_hidden": (8,), "decoder_hidden": (8,)},
}
TEXT = {
    "dataset": {"name": "copy", "examples": 80, "subset": None},
    "model": {"name": "gpt", "layers": 1, "heads": 1, "width": 8},
}


def case(trainer, *meshes, dataset=None, model=None, **more):
    """Return a config and its meshes."""
    trainer = PLAIN["trainer"] | {"name": trainer} | more
    dataset = {k: v for k, v in (PLAIN["dataset"] | (dataset or {})).items() if v is not None}
    return PLAIN | {
        "dataset": dataset,
        "model": model or PLAIN["model"],
        "trainer": trainer,
    }, meshes


POLICY = {"optimizer": "momentum", "rewards": ("share",)}
SHARDED = mesh(1, 4, fully_sharded=True)

CASES = [
    # A first layer written after every four examples, by `Trainer.steps`.
    case("grlu", mesh(4, 1), samples=8, batch_size=1, online_chunk=4),
    case("grlu", mesh(2, 2), samples=8, site="active", noise="orthogonal"),
    case("grlu", mesh(2, 2), samples=8, site="post", inputs="noisy"),
    case("evolution", mesh(2, 2), population=32, rank=1),
    case("evolution", mesh(2, 2), population=32, chunk=4, batches="own", batch_size=16),
    case("weight_perturbation", mesh(2, 2), samples=8),
    case("forward_gradient", mesh(2, 2), samples=8, of="weight"),
    case("feedback_alignment", mesh(1, 4)),
    case("svi", mesh(1, 4), **POSTERIORS, mode="kl", svi_steps=2, learning_rate=1e-3),
    # Data-parallel alone, and fully sharded at once.
    case("backprop", SHARDED, **TEXT, optimizer="momentum", objective="lm"),
    case("grpo", mesh(1, 4), SHARDED, **TEXT, **POLICY, samples=4, reference="random", beta_kl=0.1),
    case("ppo", SHARDED, **TEXT, **POLICY, updates=2, minibatches=2, horizon=1),
    case("dpo", SHARDED, **TEXT, optimizer="momentum", utility=("share",)),
    case("reward_model", SHARDED, **TEXT, optimizer="momentum", horizon=3, utility=("share",)),
]


def run(script, environment, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def small(small):
    """Rounding could switch a ReLU, and Adam blow up gradients near zero."""
    small["model"] |= {"hidden": (8,), "activation": "tanh"}
    small["trainer"] |= {"optimizer": "sgd", "learning_rate": 0.05, "average": None}
    return small


@pytest.mark.slow
def test_four_devices_give_the_update_of_one(devices):
    run(STEPS, devices(4), json.dumps(CASES))


def test_every_kind_of_trainer_is_tested_on_a_mesh():
    def kind(name):
        entry = trainers.TRAINERS[name]
        return entry.trainer, getattr(entry.settings, "rule_class", None)

    tried = {kind(config["trainer"]["name"]) for config, _ in CASES}
    assert tried == {kind(name) for name in trainers.TRAINERS}


@pytest.mark.slow
def test_a_run_resumes_on_another_mesh(small, tmp_path, devices):
    small["trainer"] |= {"batch_size": 64, "epochs": 2}
    on_one, on_four = tmp_path / "one", tmp_path / "four"
    trainers.train(small, on_one, progress=False)
    shutil.copytree(on_one, tmp_path / "more")
    unfinished(tmp_path / "more")
    script = """
import json, sys
import trainers
config, new, old = sys.argv[1:]
trainers.train(json.loads(config), new, progress=False)
changes = ["mesh.population=1", "mesh.data=4", "mesh.fully_sharded=true"]
trainers.resume(old, overrides=changes, progress=False)
"""
    config = json.dumps(small | {"mesh": mesh(2, 2)})
    run(script, devices(4), config, on_four, tmp_path / "more")
    same(on_one, on_four)
    same(on_one, tmp_path / "more")
    unfinished(on_four)
    trainers.resume(on_four, overrides=["mesh.population=1", "mesh.data=1"], progress=False)
    same(on_one, on_four)


def unfinished(run):
    """Reset a run of two epochs to the end of the first."""
    shutil.rmtree(max((run / "checkpoints").iterdir(), key=lambda path: int(path.name)))


def same(one, two):
    """Check that two runs have the same weights and metrics."""
    states = [restored(RunDirectory(run), best=False).state for run in (one, two)]
    assert int(states[0].step) == int(states[1].step)
    pairs = zip(*(jax.tree.leaves(state.params) for state in states), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, atol=1e-5)
    metrics = [latest_metrics(run / "metrics.csv") for run in (one, two)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-5)


AUTO = ["trainer.samples=auto", "trainer.site=pre", "trainer.noise=orthogonal"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["mesh.data=64", "trainer.batch_size=64"], "needs 64 devices, and there are"),
        (["mesh.data=3"], r"mesh.data must divide trainer.batch_size \(8\), got 3"),
        (
            ["mesh.population=2", *AUTO],
            "trainer.samples must be a multiple of 2 for mesh.population=2, got auto",
        ),
        (
            ["mesh.population=3"],
            "trainer.samples must be a multiple of 3 for mesh.population=3, got 4",
        ),
        (
            ["trainer.name=evolution", "trainer.population=12", "mesh.population=4"],
            "trainer.population must be a multiple of 8 .* got 12",
        ),
        (["trainer.name=backprop", "mesh.population=2"], "has no noisy passes"),
        (["run.seeds=2", "mesh.data=2"], "each seed runs on one device, .* run.seeds 1"),
        (["mesh.data=0"], "mesh.data must be at least 1"),
        (["mesh.rows=2"], "mesh has no key 'rows'"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(changes, sentence, small, tmp_path):
    with pytest.raises(UserError, match=sentence):
        trainers.train(small, tmp_path / "run", overrides=changes, progress=False)
    assert not (tmp_path / "run").exists()


def test_only_the_mesh_may_change_on_resume(tmp_path):
    with pytest.raises(UserError, match="only the mesh may change"):
        trainers.resume(tmp_path, overrides=["trainer.samples=8"])

"""RLHF pipelines that are cut off in each stage and resumed."""

import shutil

import pytest

import trainers

# PPO has the largest state: a critic with its optimizer. `test_policy.py` resumes the others.
POLICY = {"name": "ppo", "updates": 2, "minibatches": 2, "kl": "k1", "kl_in": "reward"}


def pipeline():
    steps = {"epochs": 3, "batch_size": 8}
    model = {"name": "gpt", "layers": 1, "heads": 1, "width": 8, "block": 4}
    policy = POLICY | {"rewards": ["judge"], "beta_kl": 0.1, **steps}
    return {
        "dataset": {"name": "copy", "digits": 1, "validation": 0, "test": 0.1, "examples": 10},
        "stages": [
            {
                "name": "supervised",
                "model": model,
                "trainer": {"name": "backprop", "objective": "lm", **steps},
            },
            {
                "name": "judge",
                "start": "supervised",
                "trainer": {"name": "reward_model", "utility": ["share"], **steps},
            },
            {"name": "policy", "start": "supervised", "judge": "judge", "trainer": policy},
        ],
        "run": {"rows_per_epoch": 1, "keep_last": 10},
    }


@pytest.mark.slow
def test_each_stage_resumes_bit_identically(tmp_path, same_run):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    trainers.train(pipeline(), whole, progress=False)
    assert (whole / "stages" / "policy" / "samples.jsonl").is_file()
    shutil.copytree(whole, cut)
    # As after a kill in each stage: rows and samples without the states that belong to them.
    for stage in pipeline()["stages"]:
        steps = sorted((cut / "stages" / stage["name"] / "checkpoints").iterdir(), key=by_step)
        for folder in steps[-2:]:
            shutil.rmtree(folder)
        assert steps[:-2]
    trainers.resume(cut, progress=False)
    same_run(whole, cut)


def by_step(folder):
    return int(folder.name)

"""RLHF pipelines that are killed in each stage and resumed."""

import pytest

# PPO has the largest state: a critic with its optimizer. `test_policy.py` resumes the others.
POLICY = {"name": "ppo", "updates": 2, "minibatches": 2, "kl": "k1", "kl_in": "reward"}


def pipeline():
    steps = {"epochs": 6, "batch_size": 8}
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
        "run": {"rows_per_epoch": 1},
    }


@pytest.mark.slow
def test_a_pipeline_killed_in_each_stage_resumes_bit_identically(killed_in_each_stage):
    run = killed_in_each_stage(pipeline())
    assert (run / "stages" / "policy" / "samples.jsonl").is_file()

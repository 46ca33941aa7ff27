"""Supervised, reward model, policy: killed in each stage and resumed, it ends the same."""

import pytest

POLICIES = {
    "grpo": {"kl_warmup_tokens": 2000},
    "ppo": {"updates": 2, "minibatches": 2, "kl": "k1", "kl_in": "reward"},
    "reinforce": {"samples": 2, "reference": "bigram"},
}


def pipeline(kind):
    steps = {"epochs": 12, "batch_size": 8}
    model = {"name": "gpt", "layers": 1, "heads": 1, "width": 8, "block": 4}
    policy = {"name": kind, "rewards": ["judge"], "beta_kl": 0.1, **steps, **POLICIES[kind]}
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
@pytest.mark.parametrize("kind", POLICIES)
def test_killed_in_each_stage_and_resumed_it_ends_the_same(kind, killed_in_each_stage):
    run = killed_in_each_stage(pipeline(kind))
    assert (run / "stages" / "policy" / "samples.jsonl").is_file()

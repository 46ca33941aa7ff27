"""Supervised, reward model, policy: killed in each stage and resumed, it ends the same."""

import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainers
from trainers.config import to_json
from trainers.features import restored
from trainers.run_directory import RunDirectory

STAGES = ("supervised", "judge", "policy")
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


def last_state(run):
    """Every array of the newest checkpoint as bytes: weights, critic, reference, counters, key."""
    leaves = jax.tree.leaves(restored(RunDirectory(run), best=False).state)
    raw = (
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in leaves
    )
    return [np.asarray(x).tobytes() for x in raw]


@pytest.mark.slow
@pytest.mark.parametrize("kind", POLICIES)
def test_killed_in_each_stage_and_resumed_it_ends_the_same(kind, tmp_path, grlu_command):
    config, whole, killed = tmp_path / "small.json", tmp_path / "whole", tmp_path / "killed"
    config.write_text(to_json(trainers.resolve(pipeline(kind))))
    process = grlu_command("train", config, "--run", whole, "--quiet")
    assert process.wait() == 0, process.stderr.read()
    for i, name in enumerate(STAGES):
        arguments = ["resume", killed] if i else ["train", config, "--run", killed]
        process = grlu_command(*arguments, "--quiet")
        table = killed / "stages" / name / "metrics.csv"
        while process.poll() is None:
            if table.exists() and table.read_text().count("\n") > 5:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.002)
        assert process.returncode == -signal.SIGKILL, process.stderr.read()
    process = grlu_command("resume", killed, "--quiet")
    assert process.wait() == 0, process.stderr.read()
    for name in STAGES:
        one, two = (run / "stages" / name for run in (whole, killed))
        assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes(), name
        assert last_state(one) == last_state(two), name
    one, two = (run / "stages" / "policy" / "samples.jsonl" for run in (whole, killed))
    assert one.read_bytes() == two.read_bytes()

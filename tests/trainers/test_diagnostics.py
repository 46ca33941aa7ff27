"""Checks of a policy's metrics, and its samples."""

import json

import jax.numpy as jnp
import pytest

import trainers
from trainers.completions.rewards import COMPLETION_REWARDS
from trainers.loop.samples import write_samples
from trainers.policies.diagnostics import checklist

FINE = {
    "p_error": 1e-7,
    "mismatch": 1e-6,
    "ratio": 1.0,
    "zero_std": 0.3,
    "gradient": 0.5,
    "entropy": 2.0,
    "repetition": 0.1,
    "clip_fraction": 0.1,
    "advantage": 0.0,
    "advantage_spread": 1.0,
    "kl": 0.5,
    "length": 4.0,
    "cut_off": 0.5,
    "reward": 2.0,
}


def test_a_sound_policy_passes_all_checks():
    found = checklist(FINE, off_policy=True)
    assert all(holds for holds, _ in found)
    assert len(found) == 11
    assert len(checklist(FINE, off_policy=False)) == 10
    alone = {name: value for name, value in FINE.items() if name != "zero_std"}
    assert len(checklist(alone, off_policy=True)) == 10  # One sample is always like itself.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"p_error": 0.1}, "logits are not finite"),
        ({"mismatch": 0.1}, "cached pass and its full pass differ"),
        ({"ratio": 1.1}, "it must be 1"),
        ({"zero_std": 1.0}, "no signal; is the reward the same"),
        ({"gradient": 0.0}, "no signal: the weights do not move"),
        ({"entropy": 0.001}, "a higher trainer.temperature"),
        ({"repetition": 0.95}, "the model repeats itself"),
        ({"clip_fraction": 0.7}, "70% of the tokens are clipped: a lower"),
        ({"kl": 100.0}, "it explodes"),
        ({"kl": 30.0}, "its penalty exceeds the reward"),
        ({"cut_off": 1.0}, "100% of the completions are cut off .*: a longer trainer.horizon"),
    ],
)
def test_a_failed_check_names_its_cause(change, said):
    wrong = [
        text for holds, text in checklist(FINE | change, off_policy=True, beta=0.1) if not holds
    ]
    assert len(wrong) == 1
    with pytest.raises(ValueError, match=said):
        raise ValueError(wrong[0])


def test_samples_of_a_step_are_written_once(tmp_path):
    path = tmp_path / "samples.jsonl"
    write_samples(path, 10, [{"completion": "ä"}, {"completion": "b"}])
    write_samples(path, 20, [{"completion": "c"}])
    write_samples(path, 20, [{"completion": "d"}])  # resumed
    *lines, end = path.read_bytes().decode().split("\n")
    rows = [json.loads(line) for line in lines]
    assert [(row["step"], row["completion"]) for row in rows] == [(10, "ä"), (10, "b"), (20, "d")]
    assert end == ""


# What str.splitlines takes for the end of a line, and JSON does not escape.
BREAKS = "\x7f\x85\u2028\u2029"


def test_a_sample_may_hold_any_character(tmp_path):
    path = tmp_path / "samples.jsonl"
    texts = [f"a{character}b" for character in (*BREAKS, "\n", "\r", "\x1c")]
    for step in (10, 20):
        write_samples(path, step, [{"completion": text} for text in texts])
    *lines, end = path.read_bytes().decode().split("\n")
    assert [json.loads(line)["completion"] for line in lines] == 2 * texts
    assert end == ""


@pytest.mark.slow
def test_equal_rewards_everywhere_are_reported_as_no_signal(tmp_path, monkeypatch):
    monkeypatch.setitem(COMPLETION_REWARDS, "same", lambda p, c, **columns: jnp.ones(len(c)))
    config = {
        "dataset": {"name": "copy", "digits": 2},
        "model": {"name": "gpt", "layers": 1, "heads": 1, "width": 16},
        "trainer": {"name": "grpo", "rewards": ["same"], "batch_size": 20},
        "run": {"rows_per_epoch": 1},
    }
    trainers.train(config, tmp_path / "run", progress=False)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "100% of the prompts have samples with equal rewards only: no signal" in log
    assert "the ratio before the first update is 1.0000" in log
    rows = (tmp_path / "run" / "samples.jsonl").read_text().split("\n")[:-1]
    assert len(rows) == 4  # The validation set has four questions.
    first = json.loads(rows[0])
    assert first["reward"] == 1
    assert first["prompt"][1:3] == first["target"]

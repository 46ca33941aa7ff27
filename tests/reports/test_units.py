"""Choice and names of the metrics in curves."""

from reports.pictures.curves import _chosen
from reports.units import named

PAID = {"trainer": {"name": "grpo", "rewards": ("exact",)}}
SUPERVISED = {"trainer": {"name": "backprop", "reward": "log_likelihood"}}


def test_unit_is_shown_if_all_runs_share_it():
    assert named("reward", SUPERVISED) == "reward (nats)"
    assert named("reward", PAID) == named("reward", PAID, SUPERVISED) == "reward"
    assert named("pair_accuracy", PAID, SUPERVISED) == "pair accuracy (%)"


def test_policy_curves_show_rewards_and_diagnostics():
    policy = ["reward", "reward_judge", "loss", "entropy", "kl", "advantage", "length", "nll"]
    assert _chosen(policy) == ["reward", "reward_judge", "kl", "entropy", "nll"]
    assert _chosen([*policy, "cut_off"])[-1] == "length"
    assert _chosen(["accuracy", "reward", "loss", "kl"]) == ["accuracy", "reward", "loss"]

"""Which metrics are drawn, and how they are called."""

from reports.curves import _chosen
from reports.units import named

PAID = {"trainer": {"name": "grpo", "rewards": ("exact",)}}
SUPERVISED = {"trainer": {"name": "backprop", "reward": "log_likelihood"}}


def test_a_unit_is_said_if_all_runs_have_it():
    assert named("reward", SUPERVISED) == "reward (nats)"
    assert named("reward", PAID) == named("reward", PAID, SUPERVISED) == "reward"
    assert named("pair_accuracy", PAID, SUPERVISED) == "pair accuracy (%)"


def test_of_a_policy_its_rewards_and_how_it_fares_are_drawn():
    policy = ["reward", "reward_judge", "loss", "entropy", "kl", "advantage", "length", "nll"]
    assert _chosen(policy) == ["reward", "reward_judge", "kl", "entropy", "nll"]
    assert _chosen([*policy, "cut_off"])[-1] == "length"
    assert _chosen(["accuracy", "reward", "loss", "kl"]) == ["accuracy", "reward", "loss"]

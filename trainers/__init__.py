"""What a run does: objective, rule and optimizer; the loop, evaluation and logging."""

from trainers.experiment import TRAINERS, evaluate, make_experiment, resolve, resume, train
from trainers.gradient import gradient_settings
from trainers.loop import Result
from trainers.objectives import REWARDS

__all__ = [
    "REWARDS",
    "TRAINERS",
    "Result",
    "evaluate",
    "gradient_settings",
    "make_experiment",
    "resolve",
    "resume",
    "train",
]

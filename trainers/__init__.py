"""What a run does: objective, rule and optimizer; the loop, evaluation and logging."""

from trainers.completion_rewards import COMPLETION_REWARDS, in_python
from trainers.experiment import TRAINERS, make_experiment
from trainers.generate import generate
from trainers.loop import Result
from trainers.objective import Objective
from trainers.objectives import OBJECTIVES, REWARDS
from trainers.rule_settings import gradient_settings
from trainers.runs import evaluate, resolve, resume, train

__all__ = [
    "COMPLETION_REWARDS",
    "OBJECTIVES",
    "REWARDS",
    "TRAINERS",
    "Objective",
    "Result",
    "evaluate",
    "generate",
    "gradient_settings",
    "in_python",
    "make_experiment",
    "resolve",
    "resume",
    "train",
]

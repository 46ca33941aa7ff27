"""Training: objectives, rules, optimizers, the loop, evaluation and logging."""

from grlu.startup import require_own_packages

require_own_packages()  # Before an import from a folder that hides ours.

# ruff: noqa: E402
from trainers.api import evaluate, resolve, resume, train
from trainers.build import make_experiment
from trainers.completions.rewards import COMPLETION_REWARDS, in_python
from trainers.generate import generate
from trainers.gradient.settings import gradient_settings
from trainers.loop.loop import Result
from trainers.objectives.base import Objective
from trainers.objectives.registry import OBJECTIVES, REWARDS
from trainers.registry import TRAINERS, gradient_trainer

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
    "gradient_trainer",
    "in_python",
    "make_experiment",
    "resolve",
    "resume",
    "train",
]

"""Learning rules for networks that learn from a global reward.

A rule is a drop-in for `nnx.value_and_grad`::

    rule = grlu.NodePerturbation(samples=128, sigma=0.1)
    estimate = rule(reward_fn)                   # reward_fn(model, batch) -> rewards, shape (B,)
    reward, grads = estimate(model, batch, key)  # grads of -mean reward, for nnx.Optimizer

Names are loaded on first use, so that `grlu --help` does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grlu.activations import TopK, activation
    from grlu.backprop import Backprop
    from grlu.errors import UserError
    from grlu.evolution_strategy import EvolutionStrategy
    from grlu.exact_credit import ExactCredit
    from grlu.feedback_alignment import FeedbackAlignment
    from grlu.forward_gradient import ForwardGradient
    from grlu.gradient_alignment import Alignment, alignment
    from grlu.inspection import Check, SiteTable, check, sites
    from grlu.learned_feedback import add_feedback
    from grlu.node_perturbation import NodePerturbation
    from grlu.rule import Rule
    from grlu.tracing.program import Site
    from grlu.weight_perturbation import WeightPerturbation

__version__ = "0.1.0"

_HOME = {
    "Alignment": "gradient_alignment",
    "Backprop": "backprop",
    "Check": "inspection",
    "EvolutionStrategy": "evolution_strategy",
    "ExactCredit": "exact_credit",
    "FeedbackAlignment": "feedback_alignment",
    "ForwardGradient": "forward_gradient",
    "NodePerturbation": "node_perturbation",
    "Rule": "rule",
    "Site": "tracing.program",
    "SiteTable": "inspection",
    "TopK": "activations",
    "UserError": "errors",
    "WeightPerturbation": "weight_perturbation",
    "activation": "activations",
    "add_feedback": "learned_feedback",
    "alignment": "gradient_alignment",
    "check": "inspection",
    "sites": "inspection",
}

__all__ = [
    "Alignment",
    "Backprop",
    "Check",
    "EvolutionStrategy",
    "ExactCredit",
    "FeedbackAlignment",
    "ForwardGradient",
    "NodePerturbation",
    "Rule",
    "Site",
    "SiteTable",
    "TopK",
    "UserError",
    "WeightPerturbation",
    "activation",
    "add_feedback",
    "alignment",
    "check",
    "sites",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'grlu' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"grlu.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

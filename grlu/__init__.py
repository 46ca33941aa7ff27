# ruff: noqa: F401
"""Learning rules for networks that learn from a global reward.

A rule is a drop-in for `nnx.value_and_grad`::

    rule = grlu.NodePerturbation(samples=128, sigma=0.1)
    estimate = rule(reward_fn)                   # reward_fn(model, batch) -> rewards, shape (B,)
    reward, grads = estimate(model, batch, key)  # grads of -mean reward, for nnx.Optimizer

Public names load on first use, so that `grlu --help` does not wait for JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grlu import advantages, errors, kl, policy_losses, preferences
    from grlu.activations import TopK, activation
    from grlu.errors import UserError
    from grlu.inspection.alignment import Alignment, alignment
    from grlu.inspection.checks import Check, SiteTable, check, sites
    from grlu.rules.backprop import Backprop
    from grlu.rules.evolution_strategy import EvolutionStrategy
    from grlu.rules.exact_credit import ExactCredit
    from grlu.rules.feedback_alignment import FeedbackAlignment
    from grlu.rules.forward_gradient import ForwardGradient
    from grlu.rules.learned_feedback import add_feedback
    from grlu.rules.node_perturbation import NodePerturbation
    from grlu.rules.rule import Rule
    from grlu.rules.weight_perturbation import WeightPerturbation
    from grlu.tracing.program import Site

__version__ = "0.1.0"

# Public name → the module that defines it.
_HOME = {
    "Alignment": "inspection.alignment",
    "Backprop": "rules.backprop",
    "Check": "inspection.checks",
    "EvolutionStrategy": "rules.evolution_strategy",
    "ExactCredit": "rules.exact_credit",
    "FeedbackAlignment": "rules.feedback_alignment",
    "ForwardGradient": "rules.forward_gradient",
    "NodePerturbation": "rules.node_perturbation",
    "Rule": "rules.rule",
    "Site": "tracing.program",
    "SiteTable": "inspection.checks",
    "TopK": "activations",
    "UserError": "errors",
    "WeightPerturbation": "rules.weight_perturbation",
    "activation": "activations",
    "add_feedback": "rules.learned_feedback",
    "alignment": "inspection.alignment",
    "check": "inspection.checks",
    "sites": "inspection.checks",
}
_MODULES = ("advantages", "errors", "kl", "policy_losses", "preferences")

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = importlib.import_module(f"grlu.{name}")
    elif name in _HOME:
        value = getattr(importlib.import_module(f"grlu.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'grlu' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

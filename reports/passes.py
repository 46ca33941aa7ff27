"""Forward passes per training example, the unit in which costs of rules are compared."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import trainers


def passes_per_example(config: Mapping[str, Any]) -> tuple[int, str] | None:
    """Return a run's forward passes per training example and their description.

    A clean pass that accompanies noisy ones is not counted.

    Args:
        config: the run's config.

    Returns:
        The number and its description, or None if the number is unknown.
    """
    section = config.get("trainer") or {}
    if section.get("name") == "svi":
        steps = section["svi_steps"]
        return 1 + steps, f"1 + S, S = {steps} steps of inference through the decoder"
    if section.get("name") in ("dpo", "reward_model"):
        return 4, "4, two completions sampled and learned from"
    if section.get("name") in ("grpo", "ppo", "reinforce"):
        samples, updates = section["samples"], section["updates"]
        words = f"K (1 + U), K = {samples} completions per prompt, learned from U = {updates} times"
        return samples * (1 + updates), words
    entry = trainers.TRAINERS.get(section.get("name", ""))
    rule_class = getattr(entry and entry.settings, "rule_class", None)
    if rule_class is None:
        return None
    fields = {field.name for field in dataclasses.fields(rule_class)}
    rule = rule_class(**{key: value for key, value in section.items() if key in fields})
    model = config.get("model") or {}
    if model.get("name") == "local_mlp" and "layers" in fields:
        # With separate rewards, perturbing blocks "apart" costs no more than "together".
        rule = dataclasses.replace(rule, layers="together")
    return rule.passes(len(model["hidden"]) if "hidden" in model else None)

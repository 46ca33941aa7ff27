"""Forward passes per training example, the unit in which costs of rules are compared."""

from collections.abc import Mapping
from typing import Any

import trainers
from grlu.errors import UserError
from trainers.config.schema import build


def passes_per_example(config: Mapping[str, Any]) -> tuple[int, str] | None:
    """Return a run's forward passes per training example and their description.

    A clean pass that accompanies noisy ones is not counted.

    Args:
        config: the run's config.

    Returns:
        The number and its description, or None if the number is unknown.
    """
    section, model = dict(config.get("trainer") or {}), config.get("model") or {}
    if section.get("name") not in trainers.TRAINERS:
        return None
    if model.get("name") == "local_mlp" and "layers" in section:
        # With separate rewards, perturbing blocks "apart" costs no more than "together".
        section["layers"] = "together"
    try:
        settings = build(trainers.TRAINERS[section["name"]].settings, section, "trainer")
    except UserError:
        return None
    hidden = len(model["hidden"]) if "hidden" in model else None
    return settings.passes(hidden) if hasattr(settings, "passes") else None

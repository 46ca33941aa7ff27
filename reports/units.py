"""Names and units of metrics."""

from collections.abc import Mapping
from typing import Any


def scale(metric: str) -> float:
    """Return the display factor of a metric: accuracies are shown in percent."""
    return 100.0 if metric.endswith("accuracy") else 1.0


def unit(metric: str, config: Mapping[str, Any]) -> str:
    """Return the display unit of a metric, or an empty string."""
    if metric.endswith("accuracy"):
        return "%"
    trainer = config.get("trainer") or {}
    custom = "rewards" in trainer and trainer.get("objective") in (None, "completion_reward")
    if metric == "reward" and not custom and trainer.get("reward") != "probability":
        return "nats"
    return ""


def named(metric: str, *configs: Mapping[str, Any]) -> str:
    """Return the name of a metric, such as `accuracy (%)`; the unit only if all configs agree."""
    units = {unit(metric, config) for config in configs}
    common = units.pop() if len(units) == 1 else ""
    return metric.replace("_", " ") + (f" ({common})" if common else "")


def number(metric: str, mean: float, spread: float | None) -> str:
    """Format a metric in its unit, such as `95.87 ± 0.13`."""
    digits = 2 if metric.endswith("accuracy") else 4
    text = f"{scale(metric) * mean:.{digits}f}"
    text = text.replace("-", "−")
    return text if spread is None else f"{text} ± {scale(metric) * spread:.{digits}f}"


def duration(seconds: float) -> str:
    """Format a duration, such as `9.0 s`, `3 min 20 s` or `2 h 2 min`."""
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

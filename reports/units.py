"""How metrics are called and in what units they are shown."""

from collections.abc import Mapping
from typing import Any


def scale(metric: str) -> float:
    """The factor from a metric to what is shown: accuracies are shown in percent."""
    return 100.0 if metric.endswith("accuracy") else 1.0


def unit(metric: str, config: Mapping[str, Any]) -> str:
    """The unit that a metric is shown in, or an empty string."""
    if metric.endswith("accuracy"):
        return "%"
    trainer = config.get("trainer") or {}
    paid = "rewards" in trainer and trainer.get("objective") in (None, "completion_reward")
    if metric == "reward" and not paid and trainer.get("reward") != "probability":
        return "nats"
    return ""


def named(metric: str, *configs: Mapping[str, Any]) -> str:
    """`accuracy (%)`, with the unit in which the runs of all these configs give it, if there is."""
    units = {unit(metric, config) for config in configs}
    shown = units.pop() if len(units) == 1 else ""
    return metric.replace("_", " ") + (f" ({shown})" if shown else "")


def number(metric: str, mean: float, spread: float | None) -> str:
    """`95.87 ± 0.13`, in the metric's unit."""
    digits = 2 if metric.endswith("accuracy") else 4
    text = f"{scale(metric) * mean:.{digits}f}"
    text = text.replace("-", "−")
    return text if spread is None else f"{text} ± {scale(metric) * spread:.{digits}f}"


def duration(seconds: float) -> str:
    """`9 s`, `3 min 20 s`, `1 h 2 min`."""
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"

"""Preservation policy of checkpoints: the newest, and the best by a metric."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

Better = tuple[str, Literal["min", "max"]]
"""A metric's name, and whether lower or higher is better."""


def metric_score(better: Better | None, metrics: Mapping[str, float]) -> float:
    """Score a checkpoint; higher is better, -inf if the metric is NaN or missing."""
    if better is None:
        return 0.0
    name, mode = better
    value = metrics.get(name, math.nan)
    if math.isnan(value):
        return -math.inf
    return value if mode == "max" else -value


@dataclasses.dataclass(frozen=True)
class LastAndBest:
    """Orbax preservation policy: keeps the newest `last` and the `best` by score.

    Of equal scores, the newer checkpoint counts as better.
    """

    last: int
    best: int
    score: Callable[[int], float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        by_score = sorted(steps, key=lambda step: (self.score(step), step), reverse=True)
        kept = {*sorted(steps)[-self.last :], *by_score[: self.best]}
        return [step in kept for step in steps]

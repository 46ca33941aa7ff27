"""When a run ends before its time: the validation metric has been no better for too long.

What such a run comes to is its best state, not its last.
"""

from collections.abc import Sequence
from typing import Literal


def exhausted(
    values: Sequence[float], direction: Literal["min", "max"], patience: int | None
) -> bool:
    """Whether the best of the values, one an epoch, was `patience` or more epochs ago.

    It is a function of the values alone, so that a resumed run ends where it would have ended.
    """
    if patience is None or not values:
        return False
    sign = 1 if direction == "max" else -1
    best = max(range(len(values)), key=lambda i: (sign * values[i], -i))
    return len(values) - 1 - best >= patience


def latest_is_best(values: Sequence[float], direction: Literal["min", "max"]) -> bool:
    """Whether no value is better than the last: of equals the newest is the best checkpoint."""
    best = max(values) if direction == "max" else min(values)
    return values[-1] == best

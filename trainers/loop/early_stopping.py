"""Early stopping on the validation metric; the result is then the best state, not the last."""

from collections.abc import Sequence
from typing import Literal


def exhausted(
    values: Sequence[float], direction: Literal["min", "max"], patience: int | None
) -> bool:
    """Tell whether the best of the values, one per epoch, was `patience` or more epochs ago.

    A pure function of the values: a resumed run ends where an uninterrupted one does.
    """
    if patience is None or not values:
        return False
    sign = 1 if direction == "max" else -1
    best = max(range(len(values)), key=lambda i: (sign * values[i], -i))
    return len(values) - 1 - best >= patience


def latest_is_best(values: Sequence[float], direction: Literal["min", "max"]) -> bool:
    """Tell whether no value is better than the last; of equals, the newest is the best."""
    best = max(values) if direction == "max" else min(values)
    return values[-1] == best

"""Watch over a run: what looks wrong, early stopping, and signals that stop it."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from trainers.loop.state import TrainState
from trainers.loop.trainer import BaseTrainer

_log = logging.getLogger("grlu")


class Watch:
    """Warnings about training: weights that do not move, and the trainer's failed checks.

    Args:
        trainer: the trainer.
        initial: the state before the first step, None for a run that is resumed.
    """

    def __init__(self, trainer: BaseTrainer, initial: TrainState | None):
        self._trainer = trainer
        self._before = None if initial is None else jax.tree.map(jnp.copy, initial.params)
        self._warned: set[int] = set()

    def check(self, row: Mapping[str, float], state: TrainState, step: int) -> None:
        """Log checks that pass after the first chunk, and each that fails once."""
        values = {k.removeprefix("train_"): v for k, v in row.items() if k.startswith("train_")}
        checks = self._trainer.diagnose(values)
        if self._before is not None:
            same = jax.tree.map(jnp.array_equal, self._before, state.params)
            if all(jax.tree.leaves(same)):
                _log.warning(
                    "no signal: %d steps have not moved a weight; is the reward the same "
                    "whatever the weights, or trainer.learning_rate 0?",
                    step,
                )
            self._before = None
            for holds, sentence in checks:
                if holds:
                    _log.info("%s", sentence)
        for number, (holds, sentence) in enumerate(checks):
            if not holds and number not in self._warned:
                _log.warning("step %d: %s", step, sentence)
                self._warned.add(number)


def exhausted(
    values: Sequence[float], direction: Literal["min", "max"], patience: int | None
) -> bool:
    """Tell whether the best of the values, one per epoch, was `patience` or more epochs ago.

    A pure function of the values: a resumed run ends where an uninterrupted one does.
    """
    if patience is None or not values:
        return False
    best = max(values) if direction == "max" else min(values)
    return len(values) - 1 - values.index(best) >= patience


def latest_is_best(values: Sequence[float], direction: Literal["min", "max"]) -> bool:
    """Tell whether no value is better than the last; of equals, the newest is the best."""
    return values[-1] == (max(values) if direction == "max" else min(values))


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that a run stops between two chunks; a second one kills."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        for each, previous in handlers.items():
            signal.signal(each, previous)
        _log.warning("stopping after this chunk of steps; press again to stop at once")

    handlers = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for each, previous in handlers.items():
            signal.signal(each, previous)

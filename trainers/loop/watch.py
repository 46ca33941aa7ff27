"""Supervision of a run: warnings, early stopping, and signals that stop it."""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from trainers.loop.state import TrainState
from trainers.loop.trainer import BaseTrainer

_log = logging.getLogger("grlu")


def watch(
    trainer: BaseTrainer, initial: TrainState | None
) -> Callable[[Mapping[str, float], TrainState, int], None]:
    """Return a function that logs likely problems, given a chunk's metrics, state and step.

    It warns if no weight has moved from the `initial` state, which is None for a resumed run. It
    logs the trainer's checks that pass on the first chunk, and every check the first time it fails.
    """
    before = None if initial is None else jax.tree.map(jnp.copy, initial.params)
    warned: set[int] = set()

    def check(row: Mapping[str, float], state: TrainState, step: int) -> None:
        nonlocal before
        values = {k.removeprefix("train_"): v for k, v in row.items() if k.startswith("train_")}
        checks = trainer.diagnose(values)
        if before is not None:
            if all(jax.tree.leaves(jax.tree.map(jnp.array_equal, before, state.params))):
                _log.warning(
                    "no signal: %d steps have not moved a weight; is the reward the same "
                    "whatever the weights, or trainer.learning_rate 0?",
                    step,
                )
            before = None
            for holds, sentence in checks:
                if holds:
                    _log.info("%s", sentence)
        for number, (holds, sentence) in enumerate(checks):
            if not holds and number not in warned:
                _log.warning("step %d: %s", step, sentence)
                warned.add(number)

    return check


def exhausted(
    values: Sequence[float], direction: Literal["min", "max"], patience: int | None
) -> bool:
    """Return True if the best value, of one per epoch, is `patience` or more epochs old.

    This is a pure function of the values, so a resumed run ends where an uninterrupted one does.
    """
    if patience is None or not values:
        return False
    best = max(values) if direction == "max" else min(values)
    return len(values) - 1 - values.index(best) >= patience


def latest_is_best(values: Sequence[float], direction: Literal["min", "max"]) -> bool:
    """Return True if no value is better than the last; of equals, the newest is the best."""
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

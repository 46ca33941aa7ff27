"""The folder of a run's checkpoints, on top of Orbax's `CheckpointManager`.

A checkpoint is one folder `<directory>/<step>/`, which appears by a rename once it is complete:
`state` holds the arrays (OCDBT), `info` the metrics, the caller's `meta` and the table of leaves.
"""

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from checkpoints import disk, keep, leaves
from grlu.errors import UserError

State = TypeVar("State")
_log = logging.getLogger("grlu")


@dataclasses.dataclass(frozen=True)
class Restored(Generic[State]):
    """A checkpoint read back: its step, the state, and the metrics and meta saved with it."""

    step: int
    state: State
    metrics: dict[str, float]
    meta: dict[str, Any]


class Checkpoints:
    """Saves states while training goes on, and restores the latest or the best of them.

    Args:
        directory: made if it does not exist.
        keep_last: how many of the newest checkpoints stay, at least 1.
        keep_best: how many of the best stay besides.
        better: the metric that tells which is best and whether lower ("min") or higher ("max")
            is better. Without it the latest counts as the best. NaN and a missing metric are worst.

    Raises:
        UserError: `directory` cannot be made, is not a directory, or is remote.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_last: int = 2,
        keep_best: int = 1,
        better: keep.Better | None = None,
    ) -> None:
        if keep_last < 1 or keep_best < 0:
            raise UserError(
                f"keep_last must be at least 1 and keep_best at least 0, "
                f"got {keep_last} and {keep_best}"
            )
        self.directory = disk.local(directory)
        self._better = better
        self._scores: dict[int, float] = {}
        self._saved: list[int] = []
        self._unreadable: set[int] = set()
        self._policy = keep.LastAndBest(keep_last, keep_best if better else 0, self._score)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = self._open()
        except OSError as error:
            raise UserError(
                f"the folder {self.directory} for checkpoints can't be used: {disk.reason(error)}; "
                f"name one that you may write to"
            ) from error

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of all checkpoints, rising, with the one now being written."""
        return tuple(sorted(self._manager.all_steps()))

    @property
    def latest_step(self) -> int | None:
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The step of the best checkpoint by `better`, the newest of equals; else the latest."""
        return max(self.steps, key=lambda step: (self._score(step), step), default=None)

    def save(
        self, step: int, state: Any, *, metrics: dict[str, float], meta: dict[str, Any]
    ) -> None:
        """Starts to write `state`, after the save before has ended; returns once it is copied.

        A state is a function of its step: one that this object has saved is not written again,
        and checkpoints of later steps, left by a run that was taken back, are removed.

        Args:
            step: number of steps that led to `state`.
            state: a pytree of arrays, typed PRNG keys, Python numbers and None.
            metrics: numbers to tell the best by.
            meta: anything that JSON holds.

        Raises:
            UserError: this save or the one before failed; older checkpoints are as they were.
        """
        self.wait()
        if step in self._saved:
            return
        metrics = {name: float(value) for name, value in metrics.items()}
        info = {"metrics": metrics, "meta": meta, "leaves": leaves.table(state)}
        arrays = leaves.pack(state)
        try:
            self._saved.append(step)
            self._clear_the_way(step)
            for older in self.steps:  # so that nothing is read while Orbax writes
                self._score(older)
            self._scores[step] = keep.merit(self._better, metrics)
            disk.check_space(self.directory, sum(array.nbytes for array in arrays.values()))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays), info=ocp.args.JsonSave(info)
                ),
                force=True,
            )
        except OSError as error:
            raise self._failed(step, error) from error

    def restore(
        self, like: State, step: int | None = None, *, best: bool = False
    ) -> Restored[State]:
        """Reads the latest checkpoint, the best, or that of `step`.

        One that cannot be read is named in a warning, and the next older (or next best) taken.

        Args:
            like: a state as it must come out, which may be abstract (`jax.eval_shape`): structure,
                shapes, dtypes and shardings are taken from it, whatever devices saved.

        Raises:
            UserError: there is no readable checkpoint, or it does not match `like`.
        """
        self.wait()
        expected = leaves.table(like)
        troubles = []
        if step is not None:
            candidates = [step] if step in self.steps else []
        elif best:
            candidates = sorted(self.steps, key=lambda s: (self._score(s), s), reverse=True)
        else:
            candidates = sorted(self.steps, reverse=True)
            troubles = [
                f"that of step {s} was not finished" for s in disk.unfinished(self.directory)
            ]
        for candidate in candidates:
            try:
                info = self._info(candidate)
                mismatch = leaves.difference(expected, info["leaves"])
                if mismatch is None:
                    state = self._state(candidate, like)
            except (MemoryError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:  # Orbax raises whatever it met, a bare Exception too
                troubles.append(f"that of step {candidate} is damaged ({disk.reason(error)})")
                self._unreadable.add(candidate)
                continue
            if mismatch is not None:
                raise UserError(
                    f"config and checkpoint don't match: {mismatch} "
                    f"(step {candidate} in {self.directory})"
                )
            if troubles:
                _log.warning(
                    "of the checkpoints in %s, %s: taking that of step %d",
                    self.directory,
                    ", ".join(troubles),
                    candidate,
                )
            return Restored(candidate, state, info["metrics"], info["meta"])
        which = "readable checkpoint" if step is None else f"readable checkpoint of step {step}"
        why = ", ".join(troubles) or "none was saved there"
        raise UserError(f"no {which} in {self.directory}: {why}")

    def wait(self) -> None:
        """Waits for the save that is under way.

        Raises:
            UserError: it failed, on a full disk say; older checkpoints are as they were.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # whatever the writing thread met: the state itself was checked
            raise self._failed(self._saved[-1], error) from error

    def close(self) -> None:
        """Waits for the save that is under way, then ends Orbax's threads; errors as `wait`."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                lightweight_initialize=True,  # reads nothing: a damaged one must not stop us here
            ),
        )

    def _failed(self, step: int, error: Exception) -> UserError:
        """The error to raise for a failed save, after forgetting and removing what it left."""
        self._saved.remove(step)
        with contextlib.suppress(Exception):  # which tells of the same failure once more
            self._manager.close()
        with contextlib.suppress(OSError):  # the folder itself may be what is gone
            self._manager = self._open()
            disk.remove_unfinished(self.directory)
        return UserError(
            f"the checkpoint of step {step} couldn't be saved in {self.directory}: "
            f"{disk.reason(error)}; is the disk full, or writing not permitted?"
        )

    def _clear_the_way(self, step: int) -> None:
        """Removes what must not stay beside a save of `step`: later, damaged, unfinished ones."""
        _by_first(lambda: disk.remove_unfinished(self.directory))
        for old in self.steps:
            if old >= step or old in self._unreadable:
                _log.info("%s: removing the checkpoint of step %d", self.directory, old)
                self._manager.delete(old)
                self._scores.pop(old, None)

    def _info(self, step: int) -> dict[str, Any]:
        return self._manager.restore(step, args=ocp.args.Composite(info=ocp.args.JsonRestore()))[
            "info"
        ]

    def _state(self, step: int, like: State) -> State:
        targets = leaves.targets(like)
        disk.read_through(self.directory / str(step) / "state", len(targets))
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(targets))
        )
        return leaves.unpack(like, restored["state"])

    def _score(self, step: int) -> float:
        """How good the checkpoint of `step` is: higher is better, the worst is -inf."""
        if step not in self._scores:
            try:
                self._scores[step] = keep.merit(self._better, self._info(step)["metrics"])
            except (OSError, ValueError, KeyError):  # damaged: `restore` tells, should it come up
                self._scores[step] = -math.inf
        return self._scores[step]


def _by_first(action: Callable[[], None]) -> None:
    """Of several processes that save together, the first acts before the others go on."""
    if jax.process_index() == 0:
        action()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoints")

"""Folder of a run's checkpoints, on top of Orbax's `CheckpointManager`.

A checkpoint is a folder `<directory>/<step>/`, renamed into place when it is complete. `state`
holds the arrays (OCDBT), `info` the metrics, the caller's `meta` and the table of leaves.
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
    """Restored checkpoint: its step, its state, and the metrics and meta saved with it."""

    step: int
    state: State
    metrics: dict[str, float]
    meta: dict[str, Any]


class Checkpoints:
    """Checkpoint store: saves states while training continues, restores the latest or the best.

    Args:
        directory: folder of the checkpoints, created if it does not exist.
        keep_last: number of the newest checkpoints to keep, at least 1.
        keep_best: number of the best checkpoints to keep in addition.
        better: metric that determines the best checkpoint, and whether lower ("min") or higher
            ("max") is better. Without it the latest is the best. NaN and missing rank last.

    Raises:
        UserError: if `directory` cannot be created, is not a directory, or is remote.
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
                f"choose a writable folder"
            ) from error

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the steps of all checkpoints in order, including the one being written."""
        return tuple(sorted(self._manager.all_steps()))

    @property
    def latest_step(self) -> int | None:
        """Return the step of the latest checkpoint, or None."""
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """Return the step of the best checkpoint, the newest of equals, or None."""
        return max(self.steps, key=lambda step: (self._score(step), step), default=None)

    def save(
        self, step: int, state: Any, *, metrics: dict[str, float], meta: dict[str, Any]
    ) -> None:
        """Start writing `state` after the preceding save; return once the state is copied.

        A state is a function of its step: a step that this object has saved is not written again,
        and checkpoints of later steps, left by a run that was rewound, are removed.

        Args:
            step: number of steps that led to `state`.
            state: a pytree of arrays, typed PRNG keys, Python numbers and None.
            metrics: metrics, including the one that determines the best checkpoint.
            meta: any JSON-serialisable values.

        Raises:
            UserError: if this save or the preceding one failed; older checkpoints are unchanged.
        """
        self.wait()
        if step in self._saved:
            return
        metrics = {name: float(value) for name, value in metrics.items()}
        info = {"metrics": metrics, "meta": meta, "leaves": leaves.table(state)}
        arrays = leaves.pack(state)
        try:
            self._saved.append(step)
            self._remove_obsolete(step)
            for older in self.steps:  # Scores are cached now: nothing is read while Orbax writes.
                self._score(older)
            self._scores[step] = keep.metric_score(self._better, metrics)
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
        """Restore the latest checkpoint, the best, or that of `step`.

        If a checkpoint is unreadable, log a warning and restore the next older (or next best) one.

        Args:
            like: a state, perhaps abstract (`jax.eval_shape`), with the structure, shapes, dtypes
                and shardings of the result, independent of the devices that saved it.
            step: the step to restore; None for the latest or best.
            best: restore the best checkpoint instead of the latest.

        Raises:
            UserError: if there is no readable checkpoint, or it does not match `like`.
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
                    state = self._state(candidate, like, info["leaves"])
            except (MemoryError, jax.errors.JaxRuntimeError):
                raise
            except Exception as error:  # Orbax raises anything, even a bare Exception.
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
        """Wait for the save in progress.

        Raises:
            UserError: if it failed, for example on a full disk; older checkpoints are unchanged.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # any error of the writing thread; the state was checked before
            raise self._failed(self._saved[-1], error) from error

    def close(self) -> None:
        """Wait for the save in progress, then stop Orbax's threads; raise the errors of `wait`."""
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
                lightweight_initialize=True,  # reads nothing, so damaged checkpoints do no harm
            ),
        )

    def _failed(self, step: int, error: Exception) -> UserError:
        """Return the error for a failed save, after removing its remains."""
        self._saved.remove(step)
        with contextlib.suppress(Exception):  # It raises the same failure again.
            self._manager.close()
        with contextlib.suppress(OSError):  # the folder itself may be gone
            self._manager = self._open()
            disk.remove_unfinished(self.directory)
        return UserError(
            f"the checkpoint of step {step} couldn't be saved in {self.directory}: "
            f"{disk.reason(error)}; is the disk full, or writing not permitted?"
        )

    def _remove_obsolete(self, step: int) -> None:
        """Remove later, damaged and unfinished checkpoints before a save of `step`."""
        _on_first_process(lambda: disk.remove_unfinished(self.directory))
        for old in self.steps:
            if old >= step or old in self._unreadable:
                _log.info("%s: removing the checkpoint of step %d", self.directory, old)
                self._manager.delete(old)
                self._scores.pop(old, None)

    def _info(self, step: int) -> dict[str, Any]:
        return self._manager.restore(step, args=ocp.args.Composite(info=ocp.args.JsonRestore()))[
            "info"
        ]

    def _state(self, step: int, like: State, found: leaves.Table) -> State:
        targets = leaves.targets(like, found)
        disk.read_through(self.directory / str(step) / "state", len(targets))
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(targets))
        )
        return leaves.unpack(like, restored["state"])

    def _score(self, step: int) -> float:
        """Score the checkpoint of `step`; higher is better, -inf if unreadable."""
        if step not in self._scores:
            try:
                self._scores[step] = keep.metric_score(self._better, self._info(step)["metrics"])
            except (OSError, ValueError, KeyError):  # damaged; `restore` reports it if it matters
                self._scores[step] = -math.inf
        return self._scores[step]


def _on_first_process(action: Callable[[], None]) -> None:
    """Run an action on the first process before any process continues."""
    if jax.process_index() == 0:
        action()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoints")

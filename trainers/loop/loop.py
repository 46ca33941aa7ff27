"""Training loop: compiled chunks of many steps; between them metrics, evaluation, checkpoints."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import signal
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview
from flax import nnx

from checkpoints import Checkpoints
from grlu.errors import Interrupted, RunError
from trainers.devices import processes
from trainers.devices.mesh import Devices, Seeds, placed
from trainers.loop.compiled import Chunks, compile_evaluation, require_step
from trainers.loop.console import Reporter, import_wandb
from trainers.loop.experiment import Experiment
from trainers.loop.run_dir import MetricsTable, RunDirectory, latest_metrics, read_metrics
from trainers.loop.samples import compile_pictures, write_examples
from trainers.loop.state import TrainState
from trainers.loop.watch import Watch, exhausted, latest_is_best, stop_signals

_log = logging.getLogger("grlu")


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a finished run.

    Attributes:
        run_dir: the run's folder.
        step: number of steps taken.
        metrics: the last value of every column of `metrics.csv`.
    """

    run_dir: pathlib.Path
    step: int
    metrics: dict[str, float]


def require_runnable(experiment: Experiment) -> None:
    """Raise the errors of a run before its folder is created."""
    placed(experiment.run.seeds, experiment.mesh)
    if experiment.run.wandb:
        import_wandb()
    require_step(experiment)


def fit(experiment: Experiment, run: RunDirectory, *, progress: bool) -> Result:
    """Train from the newest checkpoint, or from the initial state, to the end.

    Raises:
        RunError: if a value is not finite; the last good checkpoint is kept.
        Interrupted: on SIGINT or SIGTERM, after the state is saved.
    """
    where = placed(experiment.run.seeds, experiment.mesh)
    initial = experiment.init()
    with (
        open_checkpoints(experiment, run) as checkpoints,
        stop_signals() as signals,
        run.disk_errors(),
    ):
        state, saved = _restore(experiment, checkpoints, initial, where)
        del initial
        step = int(jnp.max(state.step))
        with (
            contextlib.closing(MetricsTable(run.metrics, _columns(experiment), step)) as table,
            contextlib.closing(Reporter(experiment, run, step=step, show=progress)) as reporter,
        ):
            loop = _Loop(experiment, run, checkpoints, where, state, saved)
            if experiment.steps == 0:
                table.write({"step": 0, "epoch": 0.0, **loop.evaluate_initial(state)})
            while loop.step < experiment.steps and not loop.ended:
                state, row = loop.run_chunk(state)
                if loop.epoch_is_over:
                    row |= loop.end_epoch(state)
                    reporter.images(loop.step, loop.pictures(state, loop.step))
                _require_numbers(row, experiment, loop.step, loop.saved, run)
                table.write({"step": loop.step, "epoch": loop.epoch, **row})
                reporter.row(loop.step, row)
                loop.save_or_stop(state, row, signals)
    processes.agreed(False)  # The other processes read what the first has written.
    return Result(run.path, loop.step, latest_metrics(run.metrics))


def open_checkpoints(experiment: Experiment, run: RunDirectory) -> Checkpoints:
    """Open the run's checkpoints; the validation split chooses the best."""
    name, direction = experiment.trainer.better
    return Checkpoints(
        run.checkpoints,
        keep_last=experiment.run.keep_last,
        keep_best=experiment.run.keep_best,
        better=None if experiment.validation is None else (f"validation_{name}", direction),
    )


def evaluate_checkpoint(
    experiment: Experiment, state: TrainState, run: RunDirectory, step: int
) -> dict[str, float]:
    """Return the trainer's test metrics at a checkpoint: means, and `_sd` over seeds."""
    metrics = _prefixed("test", compile_evaluation(experiment)(state, experiment.test))
    _require_numbers(metrics, experiment, step, step, run)
    return metrics


def _restore(
    experiment: Experiment, checkpoints: Checkpoints, initial: TrainState, where: Seeds | Devices
) -> tuple[TrainState, int | None]:
    """Return the state to train from, and the step of its checkpoint or None."""
    state = where.state(initial)
    if checkpoints.latest_step is not None:
        state = checkpoints.restore(state).state
        return state, int(jnp.max(state.step))
    overview = parameter_overview.get_parameter_overview(nnx.to_pure_dict(initial.params))
    _log.info("parameters\n%s", overview)
    if not experiment.borrowed or not experiment.steps:
        return state, None
    # The run that the weights come from may be gone when this one is resumed.
    checkpoints.save(0, state, metrics={}, meta={"epoch": 0.0})
    return state, 0


class _Loop:
    """One run between its restore and its end.

    Attributes:
        step: number of steps taken.
        saved: step of the newest checkpoint, or None.
        ended: whether early stopping ended the run.
    """

    def __init__(
        self,
        experiment: Experiment,
        run: RunDirectory,
        checkpoints: Checkpoints,
        where: Seeds | Devices,
        state: TrainState,
        saved: int | None,
    ):
        self._experiment, self._run, self._checkpoints = experiment, run, checkpoints
        self.saved, self.step = saved, int(jnp.max(state.step))
        self.pictures = compile_pictures(experiment)
        self._chunks = Chunks(experiment, where)
        self._evaluate = compile_evaluation(experiment, where)
        self._watch = Watch(experiment.trainer, state if self.step == 0 else None)
        better, self._direction = experiment.trainer.better
        self._column = f"validation_{better}"
        # Another process may read the table before the first has cut it back to the checkpoint.
        past = [row for row in read_metrics(run.metrics) if int(row["step"]) <= self.step]
        self._history = [float(row[self._column]) for row in past if row.get(self._column)]
        self.ended = exhausted(self._history, self._direction, experiment.run.patience)

    @property
    def epoch(self) -> float:
        return self.step / self._experiment.steps_per_epoch

    @property
    def epoch_is_over(self) -> bool:
        return self.step % self._experiment.steps_per_epoch == 0

    def evaluate_initial(self, state: TrainState) -> dict[str, float]:
        """Evaluate and save the state of a run without steps."""
        row = self._metrics("validation", state) | self._metrics("test", state)
        _require_numbers(row, self._experiment, 0, self.saved, self._run)
        if self._checkpoints.latest_step is None:
            self._checkpoints.save(0, state, metrics=row, meta={"epoch": 0.0})
        return row

    def run_chunk(self, state: TrainState) -> tuple[TrainState, dict[str, float]]:
        """Train on the next chunk; return the state, and training metrics and schedules."""
        state, averages, (broken, evidence), count = self._chunks.train(state, self.step)
        self.step += count
        if jnp.any(broken >= 0):
            first = int(jnp.min(broken, where=broken >= 0, initial=self.step)) + 1
            what = f"a value that is not finite appeared at step {first}"
            if broken.ndim:
                evidence = jax.tree.map(lambda a: a[int(jnp.argmax(broken >= 0))], evidence)
            raise _failure(what, self._experiment, evidence, self.saved, self._run)
        row = _prefixed("train", averages)
        scales = self._experiment.trainer.scales(jnp.asarray(self.step - 1))
        row |= {name: float(value) for name, value in scales.items()}
        self._watch.check(row, state, self.step)
        return state, row

    def end_epoch(self, state: TrainState) -> dict[str, float]:
        """Return the validation metrics, and the test metrics once the run is over."""
        experiment, patience = self._experiment, self._experiment.run.patience
        row = self._metrics("validation", state)
        self._history += [row[self._column]] if self._column in row else []
        self.ended = exhausted(self._history, self._direction, patience)
        if self.ended:
            _log.info("ended: %s was best %d epochs ago", self._column, patience)
        if self.ended or self.step == experiment.steps:
            tested = state
            if patience and not latest_is_best(self._history, self._direction):
                best = self._checkpoints.restore(state, best=True)
                _log.info("tested: step %d, the best by %s", best.step, self._column)
                tested = best.state
            row |= self._metrics("test", tested)
        write_examples(experiment, state, self._run.samples, self.step)
        return row

    def save_or_stop(self, state: TrainState, row: dict[str, float], signals: list[int]) -> None:
        """Save at the end of an epoch and on a signal; raise Interrupted after a signal.

        The row is written before: a checkpoint without its row could never be completed.
        """
        stopping = processes.agreed(bool(signals))
        if self.epoch_is_over or stopping:
            self._checkpoints.save(self.step, state, metrics=row, meta={"epoch": self.epoch})
            self.saved = self.step
        if stopping and self.step < self._experiment.steps and not self.ended:
            self._checkpoints.wait()
            raise Interrupted(
                f"stopped at step {self.step} of {self._experiment.steps}, saved; continue with "
                f"'grlu resume {self._run.resumed}'",
                signals[0] if signals else signal.SIGTERM,
            )

    def _metrics(self, split: str, state: TrainState) -> dict[str, float]:
        arrays = getattr(self._experiment, split)
        return {} if arrays is None else _prefixed(split, self._evaluate(state, arrays))


def _columns(experiment: Experiment) -> list[str]:
    """Return the columns of `metrics.csv`, with `_sd` of each metric for several seeds."""
    trainer = experiment.trainer
    names = [f"train_{name}" for name in trainer.metrics]
    for split in ("test",) if experiment.validation is None else ("validation", "test"):
        names += [f"{split}_{name}" for name in trainer.evaluated]
    if experiment.run.seeds > 1:
        names = [column for name in names for column in (name, f"{name}_sd")]
    return ["step", "epoch", *trainer.scales(jnp.zeros((), jnp.int32)), *names]


def _prefixed(split: str, values: Mapping[str, jax.Array]) -> dict[str, float]:
    """Return metrics as numbers: over seeds, the mean and the sample standard deviation."""
    row = {}
    for name, value in values.items():
        by_seed = np.atleast_1d(np.asarray(value, np.float64))
        row[f"{split}_{name}"] = float(by_seed.mean())
        if len(by_seed) > 1:
            row[f"{split}_{name}_sd"] = float(by_seed.std(ddof=1))
    return row


def _require_numbers(
    row: Mapping[str, float],
    experiment: Experiment,
    step: int,
    saved: int | None,
    run: RunDirectory,
) -> None:
    """Raise RunError if a metric is NaN."""
    if bad := next((name for name, value in row.items() if math.isnan(value)), None):
        raise _failure(f"{bad} is not a number after step {step}", experiment, {}, saved, run)


def _failure(
    what: str,
    experiment: Experiment,
    evidence: Mapping[str, Any],
    saved: int | None,
    run: RunDirectory,
) -> RunError:
    """Return the error of a run, with the reason that the trainer finds in the evidence."""
    kept = f"the checkpoint of step {saved} is kept"
    kept = "no checkpoint was saved before" if saved is None else kept
    reason = experiment.trainer.reason(evidence)
    return RunError(f"{what} of the run in {run.path}, {kept}; {reason}")

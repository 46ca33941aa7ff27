"""Training loop: compiled chunks of many steps; between them metrics, evaluation, checkpoints."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import signal
from collections.abc import Callable, Mapping
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
from trainers.loop.alignment import compile_alignment
from trainers.loop.compiled import compile_chunks, compile_evaluation, require_step
from trainers.loop.console import Reporter, import_wandb
from trainers.loop.experiment import Experiment
from trainers.loop.run_dir import MetricsTable, RunDirectory, latest_metrics, read_metrics
from trainers.loop.samples import compile_pictures, write_examples
from trainers.loop.state import TrainState
from trainers.loop.watch import exhausted, latest_is_best, stop_signals, watch

_log = logging.getLogger("grlu")


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a finished run, with the last value of every column of its `metrics.csv`."""

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
    trainer, patience = experiment.trainer, experiment.run.patience
    (better, direction), per_epoch = trainer.better, experiment.steps_per_epoch
    column = f"validation_{better}"
    where = placed(experiment.run.seeds, experiment.mesh)
    with (
        open_checkpoints(experiment, run) as checkpoints,
        stop_signals() as signals,
        run.disk_errors(),
    ):
        state, saved = _restore(experiment, checkpoints, experiment.init(), where)
        step = int(jnp.max(state.step))
        train_chunk, evaluate = compile_chunks(experiment, where), _evaluation(experiment, where)
        pictures, aligned = compile_pictures(experiment), compile_alignment(experiment, where)
        check = watch(trainer, state if step == 0 else None)
        # The first process may not have cut the table back to the checkpoint yet.
        past = [row for row in read_metrics(run.metrics) if int(row["step"]) <= step]
        history = [float(row[column]) for row in past if row.get(column)]
        ended = exhausted(history, direction, patience)
        with (
            contextlib.closing(MetricsTable(run.metrics, _columns(experiment), step)) as table,
            contextlib.closing(Reporter(experiment, run, step=step, show=progress)) as reporter,
        ):
            if experiment.steps == 0:
                row = evaluate("validation", state) | evaluate("test", state)
                _require_numbers(row, experiment, step, saved, run)
                table.write({"step": 0, "epoch": 0.0, **row})
                if checkpoints.latest_step is None:
                    checkpoints.save(0, state, metrics=row, meta={"epoch": 0.0})
            while step < experiment.steps and not ended:
                state, averages, (broken, evidence), count = train_chunk(state, step)
                step += count
                if jnp.any(broken >= 0):
                    first = int(jnp.min(broken, where=broken >= 0, initial=step)) + 1
                    what = f"a value that is not finite appeared at step {first}"
                    if broken.ndim:
                        seed = int(jnp.argmax(broken >= 0))
                        evidence = {name: values[seed] for name, values in evidence.items()}
                    raise _failure(what, experiment, evidence, saved, run)
                row = _prefixed("train", averages)
                scales = trainer.scales(jnp.asarray(step - 1))
                row |= {name: float(value) for name, value in scales.items()}
                check(row, state, step)
                epoch = step / per_epoch
                if step % per_epoch == 0:
                    row |= evaluate("validation", state) | _prefixed("train", aligned(state))
                    history += [row[column]] if column in row else []
                    if ended := exhausted(history, direction, patience):
                        _log.info("ended: %s was best %d epochs ago", column, patience)
                    if ended or step == experiment.steps:
                        tested = state
                        if patience and not latest_is_best(history, direction):
                            best = checkpoints.restore(state, best=True)
                            _log.info("tested: step %d, the best by %s", best.step, column)
                            tested = best.state
                        row |= evaluate("test", tested)
                    write_examples(experiment, state, run.samples, step)
                    reporter.images(step, pictures(state, step))
                _require_numbers(row, experiment, step, saved, run)
                # A checkpoint without its row could never be completed.
                table.write({"step": step, "epoch": epoch, **row})
                reporter.row(step, row)
                stopping = processes.agreed(bool(signals))
                if step % per_epoch == 0 or stopping:
                    checkpoints.save(step, state, metrics=row, meta={"epoch": epoch})
                    saved = step
                if stopping and step < experiment.steps and not ended:
                    checkpoints.wait()
                    raise Interrupted(
                        f"stopped at step {step} of {experiment.steps}, saved; continue with "
                        f"'grlu resume {run.resumed}'",
                        signals[0] if signals else signal.SIGTERM,
                    )
    processes.agreed(False)  # Wait: all processes read the first one's files.
    return Result(run.path, step, latest_metrics(run.metrics))


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
    # The run that the weights come from may be deleted before this one is resumed.
    checkpoints.save(0, state, metrics={}, meta={"epoch": 0.0})
    return state, 0


def _evaluation(
    experiment: Experiment, where: Seeds | Devices
) -> Callable[[str, TrainState], dict[str, float]]:
    """Return a function from a split's name and a state to the row of its metrics."""
    evaluate = compile_evaluation(experiment, where)

    def row(split: str, state: TrainState) -> dict[str, float]:
        arrays = getattr(experiment, split)
        return {} if arrays is None else _prefixed(split, evaluate(state, arrays))

    return row


def _columns(experiment: Experiment) -> list[str]:
    """Return the columns of `metrics.csv`, with `_sd` of each metric for several seeds."""
    trainer = experiment.trainer
    measured = ("alignment",) if experiment.run.alignment_every else ()
    names = [f"train_{name}" for name in (*trainer.metrics, *measured)]
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
    what: str, experiment: Experiment, evidence: Any, saved: int | None, run: RunDirectory
) -> RunError:
    """Return the error of a run, with the reason that the trainer finds in the evidence."""
    kept = "no checkpoint was saved before"
    if saved is not None:
        kept = f"the checkpoint of step {saved} is kept"
    reason = experiment.trainer.reason(evidence)
    return RunError(f"{what} of the run in {run.path}, {kept}; {reason}")

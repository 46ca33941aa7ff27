"""The loop: compiled chunks of many steps; between them metrics, evaluation and checkpoints."""

import contextlib
import dataclasses
import logging
import math
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from checkpoints import Checkpoints
from grlu.errors import Interrupted, RunError
from trainers import processes
from trainers.compiled import compile_chunk, compile_evaluation
from trainers.devices import placed
from trainers.early_stopping import exhausted, latest_is_best
from trainers.pictures import compile_pictures
from trainers.protocol import Arrays, Experiment
from trainers.reporting import parameter_overview, reporting
from trainers.run_directory import (
    MetricsTable,
    RunDirectory,
    disk_errors,
    latest_metrics,
    read_metrics,
)
from trainers.samples import show
from trainers.state import TrainState

_log = logging.getLogger("grlu")
# Bytes of the data on disk that are read at once.
_STREAMED = 2**24


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run gives back.

    Attributes:
        run_dir: its folder.
        step: steps taken.
        metrics: the last value of every column of `metrics.csv`.
    """

    run_dir: pathlib.Path
    step: int
    metrics: dict[str, float]


def fit(experiment: Experiment, run: RunDirectory, *, progress: bool) -> Result:
    """Trains from the newest checkpoint, or from the beginning, to the end.

    Raises:
        RunError: if a value is not finite; the last good checkpoint is kept.
        Interrupted: on SIGINT or SIGTERM, after the state is saved.
    """
    trainer, settings = experiment.trainer, experiment.run
    per_epoch, steps = experiment.steps_per_epoch, experiment.steps
    longest = -(-per_epoch // settings.rows_per_epoch)
    if experiment.streamed:
        batch = experiment.batch_size * sum(a[0].nbytes for a in experiment.train.values())
        longest = min(longest, max(1, _STREAMED // batch))
    where = placed(settings.seeds, experiment.mesh)
    fresh = experiment.init()
    state = where.state(fresh)
    with (
        open_checkpoints(experiment, run) as checkpoints,
        _stopping() as stop,
        disk_errors(run),
    ):
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(state).state
        else:
            _log.info("parameters\n%s", parameter_overview(nnx.to_pure_dict(fresh.params)))
        del fresh
        step = int(jnp.max(state.step))
        saved = None if checkpoints.latest_step is None else step
        if saved is None and experiment.borrowed and steps:
            # The run that the weights come from may be gone when this one is resumed.
            checkpoints.save(0, state, metrics={}, meta={"epoch": 0.0})
            saved = 0
        train_chunk = compile_chunk(experiment, where)
        evaluate = compile_evaluation(experiment, where)
        pictures = compile_pictures(experiment)
        train = dict(experiment.train)
        if not experiment.streamed:
            train = where.data(train, by_seed=experiment.by_seed)
        table = MetricsTable(run.metrics, _columns(experiment), step)
        before = jax.tree.map(jnp.copy, state.params) if step == 0 else None
        better, direction = trainer.better
        column = f"validation_{better}"
        # Another process may see the table before the first has cut it back to the checkpoint.
        past = [row for row in read_metrics(run.metrics) if int(row["step"]) <= step]
        history = [float(row[column]) for row in past if row.get(column)]
        ended = exhausted(history, direction, settings.patience)

        with (
            contextlib.closing(table),
            reporting(
                run,
                step=step,
                steps=steps,
                batch_size=experiment.batch_size,
                tokens=trainer.tokens,
                show=progress,
                remote=settings.wandb,
            ) as report,
        ):
            if steps == 0:
                row = _evaluated(experiment, evaluate, state, test=True)
                require_numbers(row, experiment, state, step, saved, run)
                table.write({"step": 0, "epoch": 0.0, **row})
                if checkpoints.latest_step is None:
                    checkpoints.save(0, state, metrics=row, meta={"epoch": 0.0})
            order_of, order = -1, np.zeros(0, np.int32)
            warned: set[int] = set()
            while step < steps and not ended:
                epoch, done = divmod(step, per_epoch)
                if epoch != order_of:
                    order_of, order = epoch, experiment.order(epoch)
                # Chunks end at fixed steps, whether or not the run was interrupted before.
                count = min(per_epoch, (done // longest + 1) * longest) - done
                rows = np.take(order, range(done, done + count), axis=-2)
                # Always of one shape: the rows beyond the count are never used.
                more = [(0, 0)] * (rows.ndim - 2) + [(0, longest - count), (0, 0)]
                rows, part = np.pad(rows, more), train
                if experiment.streamed:
                    part = {name: a[rows.reshape(-1)] for name, a in train.items()}
                    rows = np.arange(rows.size, dtype=np.int32).reshape(rows.shape)
                state, averages, broken = train_chunk(state, part, rows, count)
                step += count
                if jnp.any(broken >= 0):
                    first_broken = jnp.min(broken, where=broken >= 0, initial=step)
                    reason = trainer.reason(_broken_one(state, broken))
                    raise RunError(_not_finite(int(first_broken), saved, run.path, reason))

                row = _prefixed("train", averages)
                row |= {k: float(v) for k, v in trainer.scales(jnp.asarray(step - 1)).items()}
                if before is not None:
                    if _same(before, state.params):
                        _log.warning(
                            "no signal: %d steps have not moved a weight; is the reward the same "
                            "whatever the weights, or trainer.learning_rate 0?",
                            step,
                        )
                    before = None
                    for holds, said in trainer.diagnose(_train_values(row)):
                        if holds:
                            _log.info("%s", said)
                for number, (holds, said) in enumerate(trainer.diagnose(_train_values(row))):
                    if not holds and number not in warned:
                        _log.warning("step %d: %s", step, said)
                        warned.add(number)
                if step % per_epoch == 0:
                    row |= _evaluated(experiment, evaluate, state, test=False)
                    history += [row[column]] if column in row else []
                    ended = exhausted(history, direction, settings.patience)
                    if ended:
                        _log.info("ended: %s was best %d epochs ago", column, settings.patience)
                    if ended or step == steps:
                        outcome = state
                        if settings.patience and not latest_is_best(history, direction):
                            found = checkpoints.restore(state, best=True)
                            _log.info("tested: step %d, the best by %s", found.step, column)
                            outcome = found.state
                        row |= _prefixed("test", evaluate(outcome, experiment.test))
                    show(experiment, state, run.samples, step)
                    report.images(step, pictures(state, step))
                require_numbers(row, experiment, state, step, saved, run)
                table.write({"step": step, "epoch": step / per_epoch, **row})
                report.row(step, row)
                stopping = processes.agreed(bool(stop))
                # The row first: a checkpoint without its row could never be completed.
                if step % per_epoch == 0 or stopping:
                    checkpoints.save(step, state, metrics=row, meta={"epoch": step / per_epoch})
                    saved = step
                if stopping and step < steps and not ended:
                    checkpoints.wait()
                    raise Interrupted(
                        f"stopped at step {step} of {steps}, saved; continue with "
                        f"'grlu resume {run.resumed}'",
                        stop[0] if stop else signal.SIGTERM,
                    )
    processes.agreed(False)  # The others read what the first has written.
    return Result(run.path, step, latest_metrics(run.metrics))


def open_checkpoints(experiment: Experiment, run: RunDirectory) -> Checkpoints:
    """The run's checkpoints; the best are chosen on the validation split."""
    name, direction = experiment.trainer.better
    return Checkpoints(
        run.checkpoints,
        keep_last=experiment.run.keep_last,
        keep_best=experiment.run.keep_best,
        better=None if experiment.validation is None else (f"validation_{name}", direction),
    )


def evaluate_state(experiment: Experiment, state: TrainState, arrays: Arrays) -> dict[str, float]:
    """The trainer's metrics on a split, each the mean over its examples, `_sd` over seeds."""
    return _prefixed("test", compile_evaluation(experiment)(state, arrays))


def _columns(experiment: Experiment) -> list[str]:
    trainer = experiment.trainer
    scales = trainer.scales(jnp.zeros((), jnp.int32))
    splits = ["train", *(["validation"] if experiment.validation is not None else []), "test"]
    ends = ["", "_sd"] if experiment.run.seeds > 1 else [""]
    names = [
        f"{split}_{name}{end}"
        for split in splits
        for name in (trainer.metrics if split == "train" else trainer.evaluated)
        for end in ends
    ]
    return ["step", "epoch", *scales, *names]


def _prefixed(split: str, values: Mapping[str, jax.Array]) -> dict[str, float]:
    """Metrics as numbers: over seeds, the mean and the sample's standard deviation."""
    row = {}
    for name, value in values.items():
        by_seed = np.atleast_1d(np.asarray(value, np.float64))
        row[f"{split}_{name}"] = float(by_seed.mean())
        if len(by_seed) > 1:
            row[f"{split}_{name}_sd"] = float(by_seed.std(ddof=1))
    return row


def _evaluated(
    experiment: Experiment, evaluate: Callable, state: TrainState, *, test: bool
) -> dict[str, float]:
    row: dict[str, float] = {}
    if experiment.validation is not None:
        row |= _prefixed("validation", evaluate(state, experiment.validation))
    if test:
        row |= _prefixed("test", evaluate(state, experiment.test))
    return row


def _same(one: Any, two: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(bool(jnp.array_equal(a, b)) for a, b in pairs)


def _train_values(row: Mapping[str, float]) -> dict[str, float]:
    return {k.removeprefix("train_"): v for k, v in row.items() if k.startswith("train_")}


def _broken_one(state: TrainState, broken: jax.Array) -> TrainState:
    """The state of the first seed in which something is not finite."""
    if broken.ndim == 0:
        return state
    seed = int(jnp.argmax(broken >= 0))
    return jax.tree.map(lambda a: a[seed], state)


def _not_finite(step: int, saved: int | None, path: pathlib.Path, reason: str) -> str:
    return (
        f"a value that is not finite appeared at step {step + 1} of the run in {path}, "
        f"{_kept(saved)}; {reason}"
    )


def require_numbers(
    row: Mapping[str, float],
    experiment: Experiment,
    state: TrainState,
    step: int,
    saved: int | None,
    run: RunDirectory,
) -> None:
    """Raises RunError where what was evaluated is not a number."""
    if bad := next((name for name, value in row.items() if math.isnan(value)), None):
        one = _broken_one(state, jnp.full(np.shape(state.step), step))
        raise RunError(
            f"{bad} is not a number after step {step} of the run in {run.path}, {_kept(saved)}; "
            f"{experiment.trainer.reason(one)}"
        )


def _kept(saved: int | None) -> str:
    if saved is None:
        return "no checkpoint was saved before"
    return f"the checkpoint of step {saved} is kept"


@contextlib.contextmanager
def _stopping() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that a run stops between two chunks; a second one kills."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        for each, previous in handlers.items():
            signal.signal(each, previous)
        _log.warning("stopping after this chunk of steps; once more to stop at once")

    handlers = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for each, previous in handlers.items():
            signal.signal(each, previous)

"""The loop: compiled chunks of many steps; between them metrics, evaluation and checkpoints."""

import contextlib
import dataclasses
import logging
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from checkpoints import Checkpoints
from grlu.errors import Interrupted, RunError
from trainers.devices import Seeds
from trainers.measure import gather, means
from trainers.reporting import parameter_overview, reporting
from trainers.run_directory import MetricsTable, RunDirectory, disk_errors, latest_metrics
from trainers.state import TrainState

_log = logging.getLogger("grlu")

Arrays = Mapping[str, Any]
Values = dict[str, jax.Array]


class TrainerLike(Protocol):
    """What the loop asks of a trainer: pure functions, and the names of its metrics."""

    metrics: tuple[str, ...]
    better: tuple[str, Literal["min", "max"]]
    block: int

    def init(self, key: jax.Array) -> TrainState: ...
    def step(self, state: TrainState, batch: Arrays) -> tuple[TrainState, Values]: ...
    def steps(
        self,
        state: TrainState,
        batches: Arrays,
        count: jax.Array,
        fold: Callable[[Any, jax.Array, Values], Any],
        start: Any,
    ) -> tuple[TrainState, Any]: ...
    def evaluate(self, state: TrainState, batch: Arrays) -> Values: ...
    def encode(self, state: TrainState, batch: Arrays) -> jax.Array: ...
    def scales(self, step: jax.Array) -> Values: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The config's `run` section.

    Attributes:
        rows_per_epoch: rows of metrics an epoch; also how often a run can be stopped.
        seeds: runs trained at once, with the seeds seed, seed + 1, ...; metrics are then means and,
            with `_sd` after their names, standard deviations over the seeds.
        keep_last: newest checkpoints to keep.
        keep_best: checkpoints to keep by the best validation metric.
    """

    rows_per_epoch: int = 10
    seeds: int = 1
    keep_last: int = 2
    keep_best: int = 1

    def __post_init__(self) -> None:
        from trainers.schedules import require

        require("run.rows_per_epoch", self.rows_per_epoch, 1)
        require("run.seeds", self.seeds, 1)
        require("run.keep_last", self.keep_last, 1)
        require("run.keep_best", self.keep_best, 0)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run is made of, built from its config.

    Attributes:
        seed: of the initial weights, the order of the data and the noise.
        trainer: the trainer.
        train: arrays of the training split.
        validation: arrays of the validation split, or None.
        test: arrays of the test split.
        preprocess: batch as stored -> batch as the trainer takes it.
        epochs: passes over the training split.
        batch_size: examples a step; a last, smaller batch of an epoch is left out.
        run: the run's settings.
        by_seed: whether all arrays have a leading axis more, of a set for each seed.
        start: the state of another run whose weights this one begins with, or None.
    """

    seed: int
    trainer: TrainerLike
    train: Arrays
    validation: Arrays | None
    test: Arrays
    preprocess: Callable[[Any], Any]
    epochs: int
    batch_size: int
    run: RunSettings
    by_seed: bool = False
    start: TrainState | None = None

    @property
    def steps_per_epoch(self) -> int:
        return self.length(self.train) // self.batch_size

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.epochs * self.steps_per_epoch

    def length(self, arrays: Arrays) -> int:
        """The number of examples of a split."""
        return next(iter(arrays.values())).shape[1 if self.by_seed else 0]

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the training examples, by seed and epoch alone.

        Of shape (steps, batch), or (seeds, steps, batch) with several seeds.
        """

        def of(seed: int) -> np.ndarray:
            generator = np.random.default_rng((seed, epoch))
            chosen = generator.permutation(self.length(self.train)).astype(np.int32)
            return chosen[: self.steps_per_epoch * self.batch_size].reshape(-1, self.batch_size)

        orders = [of(self.seed + i) for i in range(self.run.seeds)]
        return orders[0] if self.run.seeds == 1 else np.stack(orders)

    def init(self) -> TrainState:
        """The state before the first step, with a leading axis of seeds if there are several."""
        if self.run.seeds == 1:
            state = self.trainer.init(jax.random.key(self.seed))
        else:
            keys = jnp.stack([jax.random.key(self.seed + i) for i in range(self.run.seeds)])
            state = jax.vmap(self.trainer.init)(keys)
        return state if self.start is None else state.begun_from(self.start)


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
    state = experiment.init()
    with (
        open_checkpoints(experiment, run) as checkpoints,
        _stopping() as stop,
        disk_errors(run),
    ):
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(state).state
        else:
            _log.info("parameters\n%s", parameter_overview(nnx.to_pure_dict(state.params)))
        step = int(jnp.max(state.step))
        saved = step or None
        train_chunk = compile_chunk(experiment)
        evaluate = compile_evaluation(experiment)
        seeds, train = Seeds(settings.seeds), dict(experiment.train)
        state = seeds.dealt(state)
        train = seeds.dealt(train) if experiment.by_seed else seeds.copied(train)
        table = MetricsTable(run.metrics, _columns(experiment), step)
        before = jax.tree.map(jnp.copy, state.params) if step == 0 else None

        with (
            contextlib.closing(table),
            reporting(
                run.path,
                step=step,
                steps=steps,
                batch_size=experiment.batch_size,
                show=progress,
            ) as report,
        ):
            if steps == 0:
                row = _evaluated(experiment, evaluate, state, test=True)
                table.write({"step": 0, "epoch": 0.0, **row})
                if checkpoints.latest_step is None:
                    checkpoints.save(0, state, metrics=row, meta={"epoch": 0.0})
            order_of, order = -1, np.zeros(0, np.int32)
            while step < steps:
                epoch, done = divmod(step, per_epoch)
                if epoch != order_of:
                    order_of, order = epoch, experiment.order(epoch)
                # Chunks end at fixed steps, whether or not the run was interrupted before.
                count = min(per_epoch, (done // longest + 1) * longest) - done
                rows = np.take(order, range(done, done + count), axis=-2)
                # Always of one shape: the rows beyond the count are never used.
                more = [(0, 0)] * (rows.ndim - 2) + [(0, longest - count), (0, 0)]
                state, averages, broken = train_chunk(state, train, np.pad(rows, more), count)
                step += count
                if jnp.any(broken >= 0):
                    first_broken = jnp.min(broken, where=broken >= 0, initial=step)
                    raise RunError(_not_finite(int(first_broken), saved, run.path))

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
                if step % per_epoch == 0:
                    row |= _evaluated(experiment, evaluate, state, test=step == steps)
                table.write({"step": step, "epoch": step / per_epoch, **row})
                report.row(step, row)
                # The row first: a checkpoint without its row could never be completed.
                if step % per_epoch == 0 or stop:
                    checkpoints.save(step, state, metrics=row, meta={"epoch": step / per_epoch})
                    saved = step
                if stop and step < steps:
                    checkpoints.wait()
                    raise Interrupted(
                        f"stopped at step {step} of {steps}, saved; continue with "
                        f"'grlu resume {run.resumed}'",
                        stop[0],
                    )
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


def compile_chunk(experiment: Experiment) -> Callable:
    """Compiles many steps into one dispatch.

    Returns:
        `chunk(state, arrays, rows, count) -> (state, metrics, broken)`: trains on the first `count`
        of the batches whose examples `rows`, shape (steps, batch), name; `broken` is the first step
        with a value that is not finite, or -1. With several seeds, `state`, `rows` and what comes
        back have a leading axis of seeds. `state` is donated.
    """
    trainer, preprocess = experiment.trainer, experiment.preprocess

    def chunk(state: TrainState, arrays: Arrays, rows: jax.Array, count: jax.Array) -> Any:
        def fold(carry: Any, step: jax.Array, values: Values) -> Any:
            collection, broken = carry
            finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(v)) for v in values.values()]))
            broken = jnp.where((broken < 0) & ~finite, step, broken)
            return gather(collection, values), broken

        # Whole blocks, of which the last is not used to its end.
        rows = jnp.pad(rows, ((0, -len(rows) % trainer.block), (0, 0)))

        def batch_of(rows: jax.Array) -> Arrays:
            return preprocess(jax.tree.map(lambda a: a[rows], arrays))

        def one(i: jax.Array, carry: Any) -> Any:
            state, folded = carry
            step = state.step
            state, values = trainer.step(state, batch_of(rows[i]))
            return state, fold(folded, step, values)

        def many(i: jax.Array, carry: Any) -> Any:
            block = jax.lax.dynamic_slice_in_dim(rows, i * trainer.block, trainer.block)
            batches = jax.vmap(batch_of)(block)
            left = jnp.minimum(count - i * trainer.block, trainer.block)
            return trainer.steps(carry[0], batches, left, fold, carry[1])

        start = (state, (means(trainer.metrics).empty(), jnp.full((), -1, jnp.int32)))
        # A bound that is data: one compilation serves the shorter last chunk, too.
        if trainer.block == 1:
            state, (collection, broken) = jax.lax.fori_loop(0, count, one, start)
        else:
            blocks = -(-count // trainer.block)
            state, (collection, broken) = jax.lax.fori_loop(0, blocks, many, start)
        weights = [jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(state.params)]
        broken = jnp.where((broken < 0) & ~jnp.all(jnp.stack(weights)), state.step - 1, broken)
        return state, collection.compute(), broken

    shared = 0 if experiment.by_seed else None
    chunk = Seeds(experiment.run.seeds).mapped(chunk, (0, shared, 0, None))
    return jax.jit(chunk, donate_argnums=0, compiler_options=_compiler_options())


def _compiler_options() -> dict[str, bool | int | str] | None:
    # The steps of a loop over single examples are many operations of a microsecond each: waking
    # threads for one costs more than it saves, and products of matrices have threads of their own.
    if jax.default_backend() != "cpu":
        return None
    return {
        "xla_disable_hlo_passes": "cpu-parallel-task-assigner",
        "xla_cpu_prefer_vector_width": 512,
    }


def compile_evaluation(
    experiment: Experiment, batch_size: int = 1000
) -> Callable[[TrainState, Arrays], Values]:
    """Compiles the trainer's metrics on a split: means over its examples, by seed if several."""
    trainer, preprocess = experiment.trainer, experiment.preprocess

    def over(state: TrainState, arrays: Arrays, rows: jax.Array, mask: jax.Array) -> Any:
        def body(collection: Any, batch: Any) -> Any:
            chosen, mask = batch
            batch = preprocess(jax.tree.map(lambda a: a[chosen], arrays))
            return gather(collection, trainer.evaluate(state, batch), mask), None

        empty = means(trainer.metrics).empty()
        return jax.lax.scan(body, empty, (rows, mask))[0].compute()

    shared = 0 if experiment.by_seed else None
    over = jax.jit(Seeds(experiment.run.seeds).mapped(over, (0, shared, None, None)))

    def evaluate(state: TrainState, arrays: Arrays) -> Values:
        length = experiment.length(arrays)
        size = min(batch_size, length)
        batches = -(-length // size)
        rows = np.arange(batches * size, dtype=np.int32).reshape(batches, size)
        mask = rows < length
        rows = rows % length
        return over(state, dict(arrays), jnp.asarray(rows), jnp.asarray(mask))

    return evaluate


def _columns(experiment: Experiment) -> list[str]:
    scales = experiment.trainer.scales(jnp.zeros((), jnp.int32))
    splits = ["train", *(["validation"] if experiment.validation is not None else []), "test"]
    ends = ["", "_sd"] if experiment.run.seeds > 1 else [""]
    names = [
        f"{split}_{name}{end}"
        for split in splits
        for name in experiment.trainer.metrics
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


def _not_finite(step: int, saved: int | None, path: pathlib.Path) -> str:
    kept = f"the checkpoint of step {saved} is kept" if saved else "no checkpoint was saved before"
    return (
        f"a value that is not finite appeared at step {step + 1} of the run in {path}, {kept}; "
        "a lower trainer.learning_rate or a trainer.clip may help"
    )


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

"""Compiled parts of the loop: many steps in one dispatch, and the evaluation of a split."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from flax import struct

from grlu.inspection.checks import require_same_rewards
from trainers.devices.mesh import Devices, Seeds
from trainers.loop.experiment import Experiment
from trainers.loop.state import TrainState
from trainers.loop.trainer import Arrays, BaseTrainer, Values

Where = Seeds | Devices
# Bytes of data that a chunk reads from disk at once.
_STREAMED = 2**24
# Folded into a step's key for augmentation; rules fold in nothing.
_AUGMENT = 0xA06


@struct.dataclass
class _GeometricMean(metrics.Average):
    """exp(mean(log value))."""

    @classmethod
    def from_model_output(cls, values: jax.Array, mask: Any = None, **_: Any) -> "_GeometricMean":
        return super().from_model_output(jnp.log(values), mask)

    def compute(self) -> Any:
        return jnp.exp(super().compute())


def means(names: Iterable[str]) -> type[metrics.Collection]:
    """Return a collection of `clu.metrics` of means over examples."""
    # Perplexity is exp of a mean: that of a text is the geometric mean over its parts.
    kinds = {name: _GeometricMean if name == "perplexity" else metrics.Average for name in names}
    return metrics.Collection.create(**{n: kind.from_output(n) for n, kind in kinds.items()})


def gather(
    collection: metrics.Collection, values: Mapping[str, jax.Array], mask: Any = None
) -> metrics.Collection:
    """Return the collection with a batch's values per example added, except those masked out."""
    given = dict(values) if mask is None else dict(values, mask=mask)
    return collection.merge(type(collection).single_from_model_output(**given))


def compile_chunk(experiment: Experiment, where: Where | None = None) -> Callable:
    """Compile many steps into one dispatch.

    Returns:
        `chunk(state, arrays, rows, count) -> (state, metrics, (broken, evidence))`: trains on the
        first `count` batches of `rows`, indices of examples of shape (steps, batch); `broken` is
        the first step with a non-finite value, or -1, and `evidence` its values for
        `trainer.reason`. With several seeds, `state`, `rows` and all results have a leading axis of
        seeds. `state` is donated.
    """
    home = where or Seeds(experiment.run.seeds)
    tiny, block = experiment.trainer.tiny, experiment.trainer.block
    looped = experiment.trainer.looped or block > 1 or jax.default_backend() != "cpu"

    def chunk(
        trainer: BaseTrainer, state: TrainState, arrays: Arrays, rows: jax.Array, count: jax.Array
    ) -> Any:
        def fold(carry: Any, step: jax.Array, values: Values) -> Any:
            collection, broken, kept = carry
            finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(v)) for v in values.values()]))
            first = (broken < 0) & ~finite
            broken = jnp.where(first, step, broken)
            kept = {name: jnp.where(first, values[name], old) for name, old in kept.items()}
            return gather(collection, values), broken, kept

        # Whole blocks; the last one may be used only in part.
        rows = jnp.pad(rows, ((0, -len(rows) % block), (0, 0)))

        def batch_of(rows: jax.Array, step: jax.Array) -> Arrays:
            batch = experiment.preprocess(home.batch(jax.tree.map(lambda a: a[rows], arrays)))
            if experiment.augment is None:
                return batch
            key = jax.random.fold_in(jax.random.fold_in(state.key, step), _AUGMENT)
            return home.batch(experiment.augment(batch, key))

        def one(i: jax.Array, carry: Any) -> Any:
            state, folded = carry
            step = state.step
            state, values = trainer.step(state, batch_of(rows[i], step))
            return state, fold(folded, step, values)

        def many(i: jax.Array, carry: Any) -> Any:
            chosen = jax.lax.dynamic_slice_in_dim(rows, i * block, block)
            batches = jax.vmap(batch_of)(chosen, carry[0].step + jnp.arange(block))
            assert trainer.steps is not None
            left = jnp.minimum(count - i * block, block)
            return trainer.steps(carry[0], batches, left, fold, carry[1])

        none = {name: jnp.zeros(s.shape, s.dtype) for name, s in trainer.evidence.items()}
        start = (state, (means(trainer.metrics).empty(), jnp.full((), -1, jnp.int32), none))
        # The loop's bound is traced, so one compilation also serves the shorter last chunk.
        if not looped:
            state, (collection, broken, kept) = one(jnp.zeros((), jnp.int32), start)
        elif trainer.steps is None:
            state, (collection, broken, kept) = jax.lax.fori_loop(0, count, one, start)
        else:
            state, (collection, broken, kept) = jax.lax.fori_loop(
                0, -(-count // block), many, start
            )
        weights = [jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(state.params)]
        broken = jnp.where((broken < 0) & ~jnp.all(jnp.stack(weights)), state.step - 1, broken)
        return state, collection.compute(), (broken, kept)

    options: dict[str, bool | int | str] = {}
    if jax.default_backend() == "cpu":
        options["xla_cpu_prefer_vector_width"] = 512
        if tiny:
            # Waking threads for an operation of a microsecond costs more than it saves, and matrix
            # products have their own threads.
            options["xla_disable_hlo_passes"] = "cpu-parallel-task-assigner"
    program = compiled(
        experiment,
        home,
        chunk,
        (0, 0 if experiment.by_seed else None, 0, None),
        donate_argnums=1,
        like=jax.eval_shape(experiment.init),
        compiler_options=options or None,
    )
    return program if looped else _one_by_one(program)


def compiled(
    experiment: Experiment, home: Where, fn: Callable, in_axes: Sequence[int | None], **options: Any
) -> Callable:
    """Compile `fn(trainer, *args)` as a function of `args`; the trainer's constants are bound.

    Args:
        experiment: the run.
        home: devices of the run.
        fn: the function.
        in_axes: for each of `args`, 0 if it has a leading axis of seeds, or None.
        options: options of `home.compiled`.
    """
    trainer = experiment.trainer

    def program(constants: Any, *args: Any) -> Any:
        return fn(trainer.bind(constants), *args)

    program.__name__ = fn.__name__
    constants = home.data(trainer.constants, by_seed=False)
    return functools.partial(home.compiled(program, (None, *in_axes), **options), constants)


def _one_by_one(compiled: Callable) -> Callable:
    """Return a chunk function that calls a one-step program for each step."""

    def chunk(state: TrainState, arrays: Arrays, rows: Any, count: int) -> Any:
        total: Values = {}
        broken: Any = -1
        for i in range(count):
            row = rows[..., i : i + 1, :]
            state, values, (first, _) = compiled(state, arrays, row, 1)
            total = {name: total.get(name, 0.0) + value for name, value in values.items()}
            broken = jnp.where(broken < 0, first, broken)
        # Only models of images are not looped, and their trainers keep no evidence.
        return state, {name: value / count for name, value in total.items()}, (broken, {})

    return chunk


def compile_chunks(
    experiment: Experiment, where: Where
) -> Callable[[TrainState, int], tuple[TrainState, Values, Any, int]]:
    """Compile the chunks of a run; they end at fixed steps, even after an interruption.

    Returns:
        `train(state, step)`: trains from `step` to the end of its chunk, and returns the state,
        averages over the steps, the first non-finite step, or -1, with its evidence, and the number
        of steps.
    """
    per_epoch, arrays = experiment.steps_per_epoch, dict(experiment.train)
    longest = -(-per_epoch // experiment.run.rows_per_epoch)
    if experiment.streamed:
        batch = experiment.batch_size * sum(a[0].nbytes for a in arrays.values())
        longest = min(longest, max(1, _STREAMED // batch))
    else:
        arrays = where.data(arrays, by_seed=experiment.by_seed)
    program = compile_chunk(experiment, where)
    order = functools.lru_cache(1)(experiment.order)

    def train(state: TrainState, step: int) -> tuple[TrainState, Values, Any, int]:
        epoch, done = divmod(step, per_epoch)
        end = min(per_epoch, (done // longest + 1) * longest)
        count = end - done
        rows = np.take(order(epoch), range(done, end), axis=-2)
        # Pad to one shape, for one compilation: rows beyond the count are never used.
        rows = np.pad(rows, [(0, 0)] * (rows.ndim - 2) + [(0, longest - count), (0, 0)])
        read = arrays
        if experiment.streamed:
            read = {name: a[rows.reshape(-1)] for name, a in arrays.items()}
            rows = np.arange(rows.size, dtype=np.int32).reshape(rows.shape)
        return *program(state, read, rows, count), count

    return train


def require_step(experiment: Experiment) -> None:
    """Raise the errors of a step before the run's folder is created.

    The step is traced, which computes nothing. Then the rewards of one batch show whether the
    network that a rule traces equals the model.
    """
    trainer, size = experiment.trainer, experiment.batch_size

    def call(method: str, key: jax.Array, rows: Arrays, constants: Any) -> Any:
        bound, batch = trainer.bind(constants), experiment.preprocess(rows)
        if experiment.augment is not None:
            batch = experiment.augment(batch, key)
        return getattr(bound, method)(trainer.init(key), batch)

    arrays = experiment.train
    if experiment.by_seed:
        arrays = {name: array[0] for name, array in arrays.items()}
    shapes = {n: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype) for n, a in arrays.items()}
    jax.eval_shape(functools.partial(call, "step"), jax.random.key(0), shapes, trainer.constants)
    if experiment.run.alignment_every:
        method = functools.partial(call, "alignment")
        jax.eval_shape(method, jax.random.key(0), shapes, trainer.constants)
    # A sharded model may not fit one device.
    if experiment.mesh.fully_sharded:
        return
    first = {name: np.asarray(array[:size]) for name, array in arrays.items()}
    # The program runs once: compile quickly rather than well.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    rewards = jax.jit(functools.partial(call, "rewards"), compiler_options=options)
    found = rewards(jax.random.key(experiment.seed), first, trainer.constants)
    if found is not None:
        require_same_rewards(*found)


def compile_evaluation(
    experiment: Experiment, where: Where | None = None
) -> Callable[[TrainState, Arrays], Values]:
    """Compile the trainer's metrics on a split: means over examples, per seed if several."""
    home, at_once = where or Seeds(experiment.run.seeds), experiment.evaluated_at_once

    def over(trainer: BaseTrainer, state: TrainState, arrays: Arrays, rows: Any, mask: Any) -> Any:
        def body(collection: Any, batch: Any) -> Any:
            chosen, mask = batch
            batch = experiment.preprocess(home.batch(jax.tree.map(lambda a: a[chosen], arrays)))
            return gather(collection, trainer.evaluate(state, batch), mask), None

        empty = means(trainer.evaluated).empty()
        return jax.lax.scan(body, empty, (rows, mask))[0].compute()

    program = compiled(experiment, home, over, (0, 0 if experiment.by_seed else None, None, None))

    def evaluate(state: TrainState, arrays: Arrays) -> Values:
        length = experiment.length(arrays)
        if experiment.streamed and not isinstance(arrays["image"], np.ndarray):
            # Evaluate one part after the other: the result is a mean weighted by length.
            total: Values = {}
            for start in range(0, length, at_once):
                part = {name: array[start : start + at_once] for name, array in arrays.items()}
                fraction = min(at_once, length - start) / length
                for name, value in evaluate(state, part).items():
                    total[name] = total.get(name, 0.0) + fraction * value
            return total
        size = -(-min(at_once, length) // home.size) * home.size
        rows = np.arange(-(-length // size) * size, dtype=np.int32).reshape(-1, size)
        return program(state, dict(arrays), rows % length, rows < length)

    return evaluate

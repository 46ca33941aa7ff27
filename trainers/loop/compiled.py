"""Compiled parts of the loop: many steps in one dispatch, and the evaluation of a split."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grlu.inspection.checks import require_same_rewards
from trainers.devices.mesh import Devices, Seeds
from trainers.loop.experiment import Experiment
from trainers.loop.metrics import gather, means
from trainers.loop.state import TrainState
from trainers.loop.trainer import Arrays, TrainerLike, Values

Where = Seeds | Devices
# Folded into a step's key for augmentation; rules fold in nothing.
_AUGMENT = 0xA06


def compile_chunk(
    experiment: Experiment, where: Where | None = None, *, evidence: bool = False
) -> Callable:
    """Compile many steps into one dispatch.

    Args:
        experiment: the run.
        where: devices to compute on, by default without a mesh.
        evidence: whether to return `(broken, evidence)` instead of `broken`.

    Returns:
        `chunk(state, arrays, rows, count) -> (state, metrics, broken)`: trains on the first `count`
        batches of `rows`, indices of examples of shape (steps, batch); `broken` is the first step
        with a non-finite value, or -1, and `evidence` its values for `trainer.reason`. With several
        seeds, `state`, `rows` and all results have a leading axis of seeds. `state` is donated.
    """
    trainer, preprocess = experiment.trainer, experiment.preprocess
    home = where or Seeds(experiment.run.seeds)
    looped = trainer.looped or trainer.block > 1 or jax.default_backend() != "cpu"
    given = _constants(trainer, home)

    def chunk(
        state: TrainState, arrays: Arrays, rows: jax.Array, count: jax.Array, *constants: Any
    ) -> Any:
        bound = trainer.bind(*constants) if constants else trainer

        def fold(carry: Any, step: jax.Array, values: Values) -> Any:
            collection, broken, kept = carry
            finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(v)) for v in values.values()]))
            first = (broken < 0) & ~finite
            broken = jnp.where(first, step, broken)
            kept = {name: jnp.where(first, values[name], old) for name, old in kept.items()}
            return gather(collection, values), broken, kept

        # Whole blocks; the last one may be used only in part.
        rows = jnp.pad(rows, ((0, -len(rows) % trainer.block), (0, 0)))

        def batch_of(rows: jax.Array, step: jax.Array) -> Arrays:
            batch = preprocess(home.batch(jax.tree.map(lambda a: a[rows], arrays)))
            if experiment.augment is None:
                return batch
            key = jax.random.fold_in(jax.random.fold_in(state.key, step), _AUGMENT)
            return home.batch(experiment.augment(batch, key))

        def one(i: jax.Array, carry: Any) -> Any:
            state, folded = carry
            step = state.step
            state, values = bound.step(state, batch_of(rows[i], step))
            return state, fold(folded, step, values)

        def many(i: jax.Array, carry: Any) -> Any:
            block = jax.lax.dynamic_slice_in_dim(rows, i * trainer.block, trainer.block)
            batches = jax.vmap(batch_of)(block, carry[0].step + jnp.arange(trainer.block))
            left = jnp.minimum(count - i * trainer.block, trainer.block)
            assert bound.steps is not None
            return bound.steps(carry[0], batches, left, fold, carry[1])

        none = {name: jnp.zeros(s.shape, s.dtype) for name, s in trainer.evidence.items()}
        start = (state, (means(trainer.metrics).empty(), jnp.full((), -1, jnp.int32), none))
        # The bound is data: one compilation also serves the shorter last chunk.
        if not looped:
            state, (collection, broken, kept) = one(jnp.zeros((), jnp.int32), start)
        elif trainer.steps is None:
            state, (collection, broken, kept) = jax.lax.fori_loop(0, count, one, start)
        else:
            blocks = -(-count // trainer.block)
            state, (collection, broken, kept) = jax.lax.fori_loop(0, blocks, many, start)
        weights = [jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(state.params)]
        broken = jnp.where((broken < 0) & ~jnp.all(jnp.stack(weights)), state.step - 1, broken)
        return state, collection.compute(), (broken, kept) if evidence else broken

    shared = 0 if experiment.by_seed else None
    compiled = home.compiled(
        chunk,
        (0, shared, 0, None, *(None for _ in given)),
        like=jax.eval_shape(experiment.init),
        donate_argnums=0,
        compiler_options=_compiler_options(trainer.tiny),
    )
    compiled = _WithConstants(compiled, given) if given else compiled
    return compiled if looped else _one_by_one(compiled, evidence)


def require_step(experiment: Experiment) -> None:
    """Raise the errors of a step before the run's folder is created.

    The step is traced, which computes nothing. Then the rewards of one batch show whether the
    network that a rule traces equals the model.
    """
    trainer, lead = experiment.trainer, 2 if experiment.by_seed else 1

    def batch_of(rows: Arrays, key: jax.Array) -> Any:
        batch = experiment.preprocess(rows)
        return batch if experiment.augment is None else experiment.augment(batch, key)

    rows = {
        name: jax.ShapeDtypeStruct((experiment.batch_size, *array.shape[lead:]), array.dtype)
        for name, array in experiment.train.items()
    }

    given = () if trainer.constants is None else (trainer.constants,)

    def step(key: jax.Array, rows: Arrays, *constants: Any) -> Any:
        bound = trainer.bind(*constants) if constants else trainer
        return bound.step(trainer.init(key), batch_of(rows, key))

    jax.eval_shape(step, jax.random.key(0), rows, *given)

    def rewards(key: jax.Array, rows: Arrays, *constants: Any) -> Any:
        bound = trainer.bind(*constants) if constants else trainer
        return bound.rewards(trainer.init(key), batch_of(rows, key))

    # A sharded model may not fit one device.
    if experiment.mesh.fully_sharded:
        return
    first = {
        name: np.asarray((array[0] if experiment.by_seed else array)[: experiment.batch_size])
        for name, array in experiment.train.items()
    }
    # The program runs once: compile quickly rather than well.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    found = jax.jit(rewards, compiler_options=options)(
        jax.random.key(experiment.seed), first, *given
    )
    if found is not None:
        require_same_rewards(*found)


def _constants(trainer: TrainerLike, home: Where) -> tuple[Any, ...]:
    """Return the last arguments of the trainer's programs: its constants on their devices."""
    return () if trainer.constants is None else (home.data(trainer.constants, by_seed=False),)


class _WithConstants:
    """A compiled program whose last arguments are given."""

    def __init__(self, program: Any, constants: tuple[Any, ...]):
        self._program, self._constants = program, constants

    def __call__(self, *args: Any) -> Any:
        return self._program(*args, *self._constants)

    def eval_shape(self, *args: Any) -> Any:
        return self._program.eval_shape(*args, *self._constants)

    def lower(self, *args: Any) -> Any:
        return self._program.lower(*args, *self._constants)


def _one_by_one(compiled: Callable, evidence: bool) -> Callable:
    """Return a chunk of steps that calls a program of one step for each."""

    def chunk(state: TrainState, arrays: Arrays, rows: Any, count: int) -> Any:
        total: Values = {}
        broken: Any = -1
        for i in range(count):
            state, values, first = compiled(state, arrays, rows[..., i : i + 1, :], 1)
            first, _ = first if evidence else (first, {})
            total = {name: total.get(name, 0.0) + value for name, value in values.items()}
            broken = jnp.where(broken < 0, first, broken)
        # Only models of images are not looped, and their trainers keep no evidence.
        broken = (broken, {}) if evidence else broken
        return state, {name: value / count for name, value in total.items()}, broken

    return chunk


def _compiler_options(tiny: bool) -> dict[str, bool | int | str] | None:
    if jax.default_backend() != "cpu":
        return None
    options: dict[str, bool | int | str] = {"xla_cpu_prefer_vector_width": 512}
    if tiny:
        # Waking threads for an operation of a microsecond costs more than it saves, and matrix
        # products have their own threads.
        options["xla_disable_hlo_passes"] = "cpu-parallel-task-assigner"
    return options


def compile_evaluation(
    experiment: Experiment, where: Where | None = None
) -> Callable[[TrainState, Arrays], Values]:
    """Compile the trainer's metrics on a split: means over examples, per seed if several."""
    trainer, preprocess = experiment.trainer, experiment.preprocess
    home, batch_size = where or Seeds(experiment.run.seeds), experiment.evaluated_at_once
    given = _constants(trainer, home)

    def over(state: TrainState, arrays: Arrays, rows: Any, mask: Any, *constants: Any) -> Any:
        bound = trainer.bind(*constants) if constants else trainer

        def body(collection: Any, batch: Any) -> Any:
            chosen, mask = batch
            batch = preprocess(home.batch(jax.tree.map(lambda a: a[chosen], arrays)))
            return gather(collection, bound.evaluate(state, batch), mask), None

        empty = means(trainer.evaluated).empty()
        return jax.lax.scan(body, empty, (rows, mask))[0].compute()

    shared = 0 if experiment.by_seed else None
    over = home.compiled(over, (0, shared, None, None, *(None for _ in given)))

    def evaluate(state: TrainState, arrays: Arrays) -> Values:
        if experiment.streamed and not isinstance(arrays["image"], np.ndarray):
            return _in_parts(evaluate, state, arrays, experiment.length(arrays), batch_size)
        length = experiment.length(arrays)
        size = -(-min(batch_size, length) // home.size) * home.size
        batches = -(-length // size)
        rows = np.arange(batches * size, dtype=np.int32).reshape(batches, size)
        mask = rows < length
        rows = rows % length
        return over(state, dict(arrays), rows, mask, *given)

    return evaluate


def _in_parts(
    evaluate: Callable, state: TrainState, arrays: Arrays, length: int, size: int
) -> Values:
    """Evaluate one part of a split after the other: means of means, weighted by length."""
    total: Values = {}
    for start in range(0, length, size):
        part = {name: array[start : start + size] for name, array in arrays.items()}
        fraction = min(size, length - start) / length
        for name, value in evaluate(state, part).items():
            total[name] = total.get(name, 0.0) + fraction * value
    return total

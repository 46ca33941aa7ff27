"""What the loop compiles: many steps in one dispatch, and the evaluation of a whole split."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grlu.inspection import require_same_rewards
from trainers.devices import Devices, Seeds
from trainers.measure import gather, means
from trainers.protocol import Arrays, Experiment, Values
from trainers.state import TrainState

Where = Seeds | Devices
# Folded into a step's key for what becomes of its batch; a rule folds in nothing.
_AUGMENT = 0xA06


def compile_chunk(experiment: Experiment, where: Where | None = None) -> Callable:
    """Compiles many steps into one dispatch.

    Args:
        experiment: the run.
        where: the devices on which it computes, by default as if it had no mesh.

    Returns:
        `chunk(state, arrays, rows, count) -> (state, metrics, broken)`: trains on the first `count`
        of the batches whose examples `rows`, shape (steps, batch), name; `broken` is the first step
        with a value that is not finite, or -1. With several seeds, `state`, `rows` and what comes
        back have a leading axis of seeds. `state` is donated.
    """
    trainer, preprocess = experiment.trainer, experiment.preprocess
    home = where or Seeds(experiment.run.seeds)
    looped = trainer.looped or trainer.block > 1 or jax.default_backend() != "cpu"

    def chunk(state: TrainState, arrays: Arrays, rows: jax.Array, count: jax.Array) -> Any:
        def fold(carry: Any, step: jax.Array, values: Values) -> Any:
            collection, broken = carry
            finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(v)) for v in values.values()]))
            broken = jnp.where((broken < 0) & ~finite, step, broken)
            return gather(collection, values), broken

        # Whole blocks, of which the last is not used to its end.
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
            state, values = trainer.step(state, batch_of(rows[i], step))
            return state, fold(folded, step, values)

        def many(i: jax.Array, carry: Any) -> Any:
            block = jax.lax.dynamic_slice_in_dim(rows, i * trainer.block, trainer.block)
            batches = jax.vmap(batch_of)(block, carry[0].step + jnp.arange(trainer.block))
            left = jnp.minimum(count - i * trainer.block, trainer.block)
            return trainer.steps(carry[0], batches, left, fold, carry[1])

        start = (state, (means(trainer.metrics).empty(), jnp.full((), -1, jnp.int32)))
        # A bound that is data: one compilation serves the shorter last chunk, too.
        if not looped:
            state, (collection, broken) = one(jnp.zeros((), jnp.int32), start)
        elif trainer.block == 1:
            state, (collection, broken) = jax.lax.fori_loop(0, count, one, start)
        else:
            blocks = -(-count // trainer.block)
            state, (collection, broken) = jax.lax.fori_loop(0, blocks, many, start)
        weights = [jnp.all(jnp.isfinite(p)) for p in jax.tree.leaves(state.params)]
        broken = jnp.where((broken < 0) & ~jnp.all(jnp.stack(weights)), state.step - 1, broken)
        return state, collection.compute(), broken

    shared = 0 if experiment.by_seed else None
    compiled = home.compiled(
        chunk,
        (0, shared, 0, None),
        like=jax.eval_shape(experiment.init),
        donate_argnums=0,
        compiler_options=_compiler_options(trainer.tiny),
    )
    return compiled if looped else _one_by_one(compiled)


def require_step(experiment: Experiment) -> None:
    """Raise what is wrong with a step before anything is made.

    The step is traced, which computes nothing. Then the rewards of one batch show whether the
    network that a rule traces is the model.
    """
    trainer, lead = experiment.trainer, 2 if experiment.by_seed else 1

    def batch_of(rows: Arrays, key: jax.Array) -> Any:
        batch = experiment.preprocess(rows)
        return batch if experiment.augment is None else experiment.augment(batch, key)

    rows = {
        name: jax.ShapeDtypeStruct((experiment.batch_size, *array.shape[lead:]), array.dtype)
        for name, array in experiment.train.items()
    }

    def step(key: jax.Array, rows: Arrays) -> Any:
        return trainer.step(trainer.init(key), batch_of(rows, key))

    jax.eval_shape(step, jax.random.key(0), rows)

    def rewards(key: jax.Array, rows: Arrays) -> Any:
        return trainer.rewards(trainer.init(key), batch_of(rows, key))

    # A model that is sharded may not fit one device.
    if experiment.mesh.fully_sharded:
        return
    first = {
        name: np.asarray((array[0] if experiment.by_seed else array)[: experiment.batch_size])
        for name, array in experiment.train.items()
    }
    # Run once: fast to compile is better than fast.
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    found = jax.jit(rewards, compiler_options=options)(jax.random.key(experiment.seed), first)
    if found is not None:
        require_same_rewards(*found)


def _one_by_one(compiled: Callable) -> Callable:
    """A chunk of steps by a program of one step, which is called for each."""

    def chunk(state: TrainState, arrays: Arrays, rows: Any, count: int) -> Any:
        total: Values = {}
        broken: Any = -1
        for i in range(count):
            state, values, first = compiled(state, arrays, rows[..., i : i + 1, :], 1)
            total = {name: total.get(name, 0.0) + value for name, value in values.items()}
            broken = jnp.where(broken < 0, first, broken)
        return state, {name: value / count for name, value in total.items()}, broken

    return chunk


def _compiler_options(tiny: bool) -> dict[str, bool | int | str] | None:
    if jax.default_backend() != "cpu":
        return None
    options: dict[str, bool | int | str] = {"xla_cpu_prefer_vector_width": 512}
    if tiny:
        # Waking threads for an operation of a microsecond costs more than it saves, and products
        # of matrices have threads of their own.
        options["xla_disable_hlo_passes"] = "cpu-parallel-task-assigner"
    return options


def compile_evaluation(
    experiment: Experiment, where: Where | None = None
) -> Callable[[TrainState, Arrays], Values]:
    """Compiles the trainer's metrics on a split: means over its examples, by seed if several."""
    trainer, preprocess = experiment.trainer, experiment.preprocess
    home, batch_size = where or Seeds(experiment.run.seeds), experiment.evaluated_at_once

    def over(state: TrainState, arrays: Arrays, rows: Any, mask: Any) -> Any:
        def body(collection: Any, batch: Any) -> Any:
            chosen, mask = batch
            batch = preprocess(home.batch(jax.tree.map(lambda a: a[chosen], arrays)))
            return gather(collection, trainer.evaluate(state, batch), mask), None

        empty = means(trainer.evaluated).empty()
        return jax.lax.scan(body, empty, (rows, mask))[0].compute()

    shared = 0 if experiment.by_seed else None
    over = home.compiled(over, (0, shared, None, None))

    def evaluate(state: TrainState, arrays: Arrays) -> Values:
        if experiment.streamed and not isinstance(arrays["image"], np.ndarray):
            return _in_parts(evaluate, state, arrays, experiment.length(arrays), batch_size)
        length = experiment.length(arrays)
        size = -(-min(batch_size, length) // home.size) * home.size
        batches = -(-length // size)
        rows = np.arange(batches * size, dtype=np.int32).reshape(batches, size)
        mask = rows < length
        rows = rows % length
        return over(state, dict(arrays), rows, mask)

    return evaluate


def _in_parts(
    evaluate: Callable, state: TrainState, arrays: Arrays, length: int, size: int
) -> Values:
    """`evaluate` on one part of a split after the other: means of means, by their lengths."""
    total: Values = {}
    for start in range(0, length, size):
        part = {name: array[start : start + size] for name, array in arrays.items()}
        share = min(size, length - start) / length
        for name, value in evaluate(state, part).items():
            total[name] = total.get(name, 0.0) + share * value
    return total

"""Cosine of a run's estimates to the exact gradient, along training."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from trainers.loop.compiled import Where, compiled
from trainers.loop.experiment import Experiment
from trainers.loop.state import TrainState
from trainers.loop.trainer import Arrays, BaseTrainer, Values

_EXAMPLES = 64


def compile_alignment(experiment: Experiment, home: Where) -> Callable[[TrainState], Values]:
    """Compile the cosine over the first training batches: 64 examples, or one larger batch.

    Batches count by the lengths of estimate and gradient, as in a mean over many steps; they are
    not augmented. The result, per seed if there are several, is empty in epochs without it.
    """
    size, every = experiment.batch_size, experiment.run.alignment_every
    if not every:
        return lambda state: {}
    count = min(max(1, _EXAMPLES // size), experiment.steps_per_epoch)
    rows = np.arange(count * size, dtype=np.int32).reshape(count, size)
    axis = 1 if experiment.by_seed else 0
    first = {k: np.asarray(a).take(rows.ravel(), axis) for k, a in experiment.train.items()}
    arrays = home.data(first, by_seed=experiment.by_seed)

    def over(trainer: BaseTrainer, state: TrainState, arrays: Arrays) -> Values:
        def products(i: jax.Array) -> jax.Array:
            batch = home.batch(jax.tree.map(lambda a: a[jnp.asarray(rows)[i]], arrays))
            own = state.replace(key=jax.random.fold_in(state.key, i))
            return trainer.alignment(own, experiment.preprocess(batch))

        dot, estimate, exact = jax.lax.map(products, jnp.arange(count)).sum(0)
        return {"alignment": dot / jnp.sqrt(jnp.maximum(estimate * exact, 1e-37))}

    program = compiled(experiment, home, over, (0, 0 if experiment.by_seed else None))

    def aligned(state: TrainState) -> Values:
        epoch = int(jnp.max(state.step)) // experiment.steps_per_epoch
        return program(state, arrays) if epoch % every == 0 else {}

    return aligned

"""Pictures of a model in training: grids of images for TensorBoard and wandb."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from trainers.devices import processes
from trainers.loop.experiment import Experiment
from trainers.loop.state import TrainState

_COLUMNS = 8
_TIMES = 10  # in a run


def compile_pictures(
    experiment: Experiment,
) -> Callable[[TrainState, int], Mapping[str, np.ndarray]]:
    """Compile the pictures of a trainer (`TrainerLike.pictures`) of images held out of training.

    Returns:
        `pictures(state, step)`: name → grid of images, uint8, (height, width, depth), about every
        tenth of the run; otherwise empty, as with several seeds or processes.
    """
    trainer = experiment.trainer
    alone = experiment.run.seeds == 1 and processes.count() == 1
    if not alone or "image" not in experiment.test:
        return lambda state, step: {}
    arrays = experiment.test if experiment.validation is None else experiment.validation
    batch = experiment.preprocess({name: a[:_COLUMNS] for name, a in arrays.items()})
    shape, x = arrays["image"].shape[1:], jnp.asarray(batch["image"])
    if len(shape) != 3 or shape[-1] not in (1, 3) or math.prod(shape) != math.prod(x.shape[1:]):
        return lambda state, step: {}
    if not jax.eval_shape(trainer.pictures, jax.eval_shape(experiment.init), x):
        return lambda state, step: {}
    low, high = float(jnp.min(x)), float(jnp.max(x))
    every = experiment.steps_per_epoch * -(-experiment.epochs // _TIMES)
    draw = jax.jit(trainer.pictures)

    def pictures(state: TrainState, step: int) -> Mapping[str, np.ndarray]:
        if step % every and step != experiment.steps:
            return {}
        return {
            name: _grid((np.asarray(images) - low) / (high - low or 1.0), len(x), shape)
            for name, images in draw(state, x).items()
        }

    return pictures


def _grid(unit: np.ndarray, columns: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Arrange images with values in [0, 1] in rows, separated by white lines."""
    _, width, depth = shape
    cells = np.clip(unit, 0, 1).reshape(-1, columns, *shape)
    apart = [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)]
    cells = np.pad(cells, apart, constant_values=1.0).swapaxes(1, 2)
    whole = cells.reshape(-1, columns * (width + 1), depth)[:-1, :-1]
    return np.round(255 * whole).astype(np.uint8)

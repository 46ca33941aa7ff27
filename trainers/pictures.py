"""What a variational autoencoder makes of images while it learns, for the eye."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainers import processes
from trainers.generative import is_generative
from trainers.protocol import Experiment
from trainers.state import TrainState

_ROWS, _COLUMNS = 4, 8
_TIMES = 10  # in a run


def compile_pictures(
    experiment: Experiment,
) -> Callable[[TrainState, int], Mapping[str, np.ndarray]]:
    """Compiles what shows a model at work, at some ends of epochs and at the last.

    Returns:
        `pictures(state, step)`: by name, a grid of images, uint8, (height, width, depth).
        "reconstructions": images it has not learned from, over what is expected at their codes;
        "samples": what is expected at draws of the prior, at every step the same. Empty between the
        ends of epochs that are shown, of several seeds, in several processes, and for every model
        but a variational autoencoder of images.
    """
    trainer: Any = experiment.trainer
    alone = experiment.run.seeds == 1 and processes.count() == 1
    if not (alone and is_generative({"trainer": vars(trainer.settings)})):
        return lambda state, step: {}
    arrays = experiment.test if experiment.validation is None else experiment.validation
    batch = experiment.preprocess({name: a[:_COLUMNS] for name, a in arrays.items()})
    shape, x = arrays["image"].shape[1:], jnp.asarray(batch["image"])
    if len(shape) != 3 or shape[-1] not in (1, 3) or math.prod(shape) != math.prod(x.shape[1:]):
        return lambda state, step: {}
    low, high = float(jnp.min(x)), float(jnp.max(x))
    every = experiment.steps_per_epoch * -(-experiment.epochs // _TIMES)

    @jax.jit
    def imagine(state: TrainState, x: jax.Array) -> dict[str, jax.Array]:
        model = trainer.model(state)
        samples = model.sample(jax.random.key(0), _ROWS * len(x))
        return {"reconstructions": jnp.stack([x, model.reconstruct(x)]), "samples": samples}

    def pictures(state: TrainState, step: int) -> Mapping[str, np.ndarray]:
        if step % every and step != experiment.steps:
            return {}
        return {
            name: _grid((np.asarray(images) - low) / (high - low or 1.0), len(x), shape)
            for name, images in imagine(state, x).items()
        }

    return pictures


def _grid(unit: np.ndarray, columns: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Images with values from 0 to 1, in rows, with a white line between two."""
    _, width, depth = shape
    cells = np.clip(unit, 0, 1).reshape(-1, columns, *shape)
    apart = [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)]
    cells = np.pad(cells, apart, constant_values=1.0).swapaxes(1, 2)
    whole = cells.reshape(-1, columns * (width + 1), depth)[:-1, :-1]
    return np.round(255 * whole).astype(np.uint8)

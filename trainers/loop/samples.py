"""Samples of a model in training: texts in `samples.jsonl`, images for TensorBoard.

`samples.jsonl` holds one JSON object per line. Only a line feed ends a line: completions may
contain other characters at which `str.splitlines` splits.
"""

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from trainers.devices import processes
from trainers.loop.experiment import Experiment
from trainers.loop.run_dir import write_atomically
from trainers.loop.state import TrainState
from trainers.loop.trainer import Arrays

_EXAMPLES = 8
_TIMES = 10  # Number of times that a run logs pictures.


def write_examples(
    experiment: Experiment, state: TrainState, path: pathlib.Path, step: int
) -> None:
    """Write the trainer's examples, if any, for a run with one seed in one process."""
    if experiment.run.seeds == 1 and processes.count() == 1:
        _, batch = _held_out(experiment)
        if rows := experiment.trainer.examples(state, batch):
            write_samples(path, step, rows)


def write_samples(path: pathlib.Path, step: int, rows: Sequence[dict[str, Any]]) -> None:
    """Append the samples of a step, and drop those of this or later steps from an earlier run."""
    kept = [line for line in read_lines(path) if json.loads(line)["step"] < step]
    new = [json.dumps({"step": step, **row}, ensure_ascii=False) for row in rows]
    write_atomically(path, "".join(f"{line}\n" for line in [*kept, *new]))


def read_lines(path: pathlib.Path) -> list[str]:
    """Return the lines of a `samples.jsonl`, or none if there is no such file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return text.removesuffix("\n").split("\n") if text else []


def compile_pictures(
    experiment: Experiment,
) -> Callable[[TrainState, int], Mapping[str, np.ndarray]]:
    """Compile a trainer's pictures (`BaseTrainer.pictures`) for images held out of training.

    Returns:
        `pictures(state, step)`: name → grid of images, uint8, (height, width, depth), about every
        tenth of the run; otherwise empty, as with several seeds or processes.
    """
    trainer = experiment.trainer
    alone = experiment.run.seeds == 1 and processes.count() == 1
    if not alone or "image" not in experiment.test:
        return lambda state, step: {}
    arrays, batch = _held_out(experiment)
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


def _held_out(experiment: Experiment) -> tuple[Arrays, Any]:
    """Return a split held out of training, and its first examples as a batch."""
    arrays = experiment.test if experiment.validation is None else experiment.validation
    first = {name: array[:_EXAMPLES] for name, array in arrays.items()}
    return arrays, experiment.preprocess(first)

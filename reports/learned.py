"""What a run has learned: its newest checkpoint, asked on the test split."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from flax import nnx

from grlu.errors import UserError
from reports.record import Record
from trainers.features import config_of, open_experiment
from trainers.gradient import Trainer
from trainers.loop import Experiment, open_checkpoints
from trainers.objectives import Reconstruction
from trainers.run_directory import RunDirectory

MOST_FIELDS, MOST_CODES, MOST_EXAMPLES, BATCH = 32, 2000, 10, 500


@dataclasses.dataclass(frozen=True, eq=False)
class Learned:
    """Answers of a run's model; all but the confusion are those of the first seed.

    Attributes:
        step: of the checkpoint.
        confusion: test examples by (true class, answered class), summed over the seeds.
        fields: weights from the image to units of the first layer, (units, height, width, depth).
        convolution: whether these are convolution kernels.
        codes: latent codes of test images, (images, latent), and `labels`, their classes.
        inputs: test images as the model sees them, and `outputs`, what it makes of them;
            (images, height, width, depth).
    """

    step: int
    confusion: np.ndarray | None = None
    fields: np.ndarray | None = None
    convolution: bool = False
    codes: np.ndarray | None = None
    labels: np.ndarray | None = None
    inputs: np.ndarray | None = None
    outputs: np.ndarray | None = None


def learned(record: Record) -> Learned:
    """Asks a run's newest checkpoint.

    Raises:
        UserError: if there is no checkpoint, or config, data and checkpoint don't fit.
    """
    run = RunDirectory.open(record.path)
    if not any(run.checkpoints.glob("*/")):
        raise UserError(f"{record.path} has no checkpoint yet")
    experiment = open_experiment(config_of(run), run, computed=("test",))
    trainer = experiment.trainer
    if not isinstance(trainer, Trainer):
        raise UserError(f"{type(trainer).__name__} is a trainer whose model a report can't ask")
    with open_checkpoints(experiment, run) as checkpoints:
        restored = checkpoints.restore(jax.eval_shape(experiment.init))
    states = [restored.state]
    if experiment.run.seeds > 1:
        states = [
            jax.tree.map(lambda leaf, seed=seed: leaf[seed], restored.state)
            for seed in range(experiment.run.seeds)
        ]
    found: dict[str, Any] = {}
    if "accuracy" in trainer.metrics:
        found["confusion"] = sum(
            _confusion(_seen_by(experiment, seed), trainer.model(each))
            for seed, each in enumerate(states)
        )
    experiment = _seen_by(experiment, 0)
    model = trainer.model(states[0])
    shape = np.shape(experiment.test["image"])[1:]
    if len(shape) == 3:
        found |= _fields(model, shape)
    if hasattr(model, "encode"):
        found |= _codes(experiment, model)
    if hasattr(model, "encode") and hasattr(model, "decode") and len(shape) == 3:
        found |= _reconstructions(experiment, model, shape)
    return Learned(restored.step, **found)


def _seen_by(experiment: Experiment, seed: int) -> Experiment:
    """The experiment with the test split as one seed sees it."""
    if not experiment.by_seed:
        return experiment
    test = {name: array[seed] for name, array in experiment.test.items()}
    return dataclasses.replace(experiment, test=test, by_seed=False)


def _ask(experiment: Experiment, model: Any, method: str, rows: np.ndarray) -> np.ndarray:
    """What a method of the model makes of these rows of the test split."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def answer(state: Any, batch: Any) -> jax.Array:
        model = nnx.merge(graphdef, state, copy=True)
        return getattr(model, method)(experiment.preprocess(batch)["image"])

    parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    batches = ({name: array[part] for name, array in experiment.test.items()} for part in parts)
    return np.concatenate([np.asarray(answer(state, batch)) for batch in batches])


def _confusion(experiment: Experiment, model: Any) -> np.ndarray:
    labels = np.asarray(experiment.test["label"])
    logits = _ask(experiment, model, "__call__", np.arange(len(labels)))
    if logits.ndim == 3:  # of several heads, the last one answers
        logits = logits[:, -1]
    counts = np.zeros((logits.shape[-1],) * 2, int)
    np.add.at(counts, (labels, logits.argmax(-1)), 1)
    return counts


def _fields(model: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """The strongest units of the first layer that takes the image itself."""
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        kernel = np.asarray(variable[...])
        if path[-1] != "kernel" or shape[-1] not in (1, 3):
            continue
        if kernel.ndim == 2 and kernel.shape[0] == math.prod(shape):
            fields = kernel.T.reshape(-1, *shape)
        elif kernel.ndim == 4 and kernel.shape[2] == shape[-1]:
            fields = kernel.transpose(3, 0, 1, 2)
        else:
            continue
        norms = np.linalg.norm(fields.reshape(len(fields), -1), axis=1)
        strongest = np.argsort(-norms, kind="stable")[:MOST_FIELDS]
        return {"fields": fields[strongest], "convolution": kernel.ndim == 4}
    return {}


def _codes(experiment: Experiment, model: Any) -> dict[str, Any]:
    labels = np.asarray(experiment.test["label"])
    rows = np.linspace(0, len(labels) - 1, min(MOST_CODES, len(labels))).astype(int)
    codes = _ask(experiment, model, "encode", rows)
    return {"codes": codes.reshape(len(rows), -1), "labels": labels[rows]}


def _reconstructions(
    experiment: Experiment, model: Any, shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """The first test image of each class, and what the model makes of it."""
    rows = np.sort(np.unique(experiment.test["label"], return_index=True)[1])[:MOST_EXAMPLES]
    rows = rows[np.argsort(np.asarray(experiment.test["label"])[rows])]
    outputs = _ask(experiment, model, "__call__", rows)
    objective = getattr(experiment.trainer, "objective", None)
    if isinstance(objective, Reconstruction) and objective.likelihood == "bernoulli":
        outputs = 1 / (1 + np.exp(-outputs))
    batch = {name: array[rows] for name, array in experiment.test.items()}
    inputs = np.asarray(experiment.preprocess(batch)["image"])
    return {"inputs": inputs.reshape(-1, *shape), "outputs": outputs.reshape(-1, *shape)}

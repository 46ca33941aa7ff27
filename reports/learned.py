"""Evaluation of a run's newest checkpoint on the test split, for the pictures of a report."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from grlu.errors import UserError
from reports.imagined import Imagined, imagined
from reports.record import Record
from trainers.evaluation import generative
from trainers.gradient.trainer import Trainer
from trainers.loop.loop import open_checkpoints
from trainers.loop.run_dir import RunDirectory
from trainers.objectives.registry import Classification, Reconstruction
from trainers.pipelines.links import config_of
from trainers.pipelines.open import open_experiment

MOST_FIELDS, MOST_CODES, MOST_EXAMPLES, MOST_IMAGINED, BATCH = 32, 2000, 10, 128, 500


@dataclasses.dataclass(frozen=True, eq=False)
class Learned:
    """Results of a run's model, of the first seed except for the confusion matrix.

    Attributes:
        step: step of the checkpoint.
        confusion: test examples by (true class, predicted class), summed over seeds.
        fields: weights from the image to units of the first layer, (units, height, width, depth).
        convolution: True if the fields are convolution kernels.
        codes: latent codes of test images, (images, latent).
        labels: classes of these images, (images,).
        inputs: preprocessed test images, (images, height, width, depth).
        outputs: the model's outputs for these images, of the same shape.
        imagined: images from a variational autoencoder.
    """

    step: int
    confusion: np.ndarray | None = None
    fields: np.ndarray | None = None
    convolution: bool = False
    codes: np.ndarray | None = None
    labels: np.ndarray | None = None
    inputs: np.ndarray | None = None
    outputs: np.ndarray | None = None
    imagined: Imagined | None = None


def learned(record: Record) -> Learned:
    """Evaluate a run's newest checkpoint.

    Raises:
        UserError: if there is no checkpoint, or config, data and checkpoint don't match.
    """
    run = RunDirectory.open(record.path)
    if not any(run.checkpoints.glob("*/")):
        raise UserError(f"{record.path} has no checkpoint yet")
    config = config_of(run)
    experiment = open_experiment(config, run, computed=("test",))
    trainer = experiment.trainer
    if not isinstance(trainer, Trainer):
        raise UserError(f"models trained with trainer.name={config.trainer.name} have no pictures")
    with open_checkpoints(experiment, run) as checkpoints:
        best = experiment.run.patience is not None
        restored = checkpoints.restore(jax.eval_shape(experiment.init), best=best)
    states = [restored.state]
    if experiment.run.seeds > 1:
        states = [
            jax.tree.map(lambda leaf, seed=seed: leaf[seed], restored.state)
            for seed in range(experiment.run.seeds)
        ]
    tests = [
        {
            name: array[seed] if experiment.by_seed else array
            for name, array in experiment.test.items()
        }
        for seed in range(len(states))
    ]
    found: dict[str, Any] = {}
    if isinstance(trainer.objective, Classification):
        found["confusion"] = sum(
            _confusion(_Tested(trainer.model(state), experiment.preprocess, test))
            for state, test in zip(states, tests, strict=True)
        )
    if "image" not in tests[0]:
        return Learned(restored.step, **found)  # Text has no pictures.
    tested = _Tested(trainer.model(states[0]), experiment.preprocess, tests[0])
    shape = np.shape(tests[0]["image"])[1:]
    if len(shape) == 3:
        found |= _fields(tested.model, shape)
    if hasattr(tested.model, "encode"):
        found |= _codes(tested)
    if hasattr(tested.model, "encode") and hasattr(tested.model, "decode") and len(shape) == 3:
        found |= _reconstructions(tested, shape, _output(tested.model, trainer.objective))
    if generative.is_generative(config) and len(shape) == 3:
        rows = np.unique(np.linspace(0, len(tested.labels) - 1, MOST_IMAGINED).astype(int))
        images = jnp.asarray(experiment.preprocess(tested.batch(rows))["image"])
        found["imagined"] = imagined(tested.model, trainer.settings, images, shape)
    return Learned(restored.step, **found)


def _output(model: Any, objective: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return the function from a model's output to the expected example."""
    if hasattr(model, "expected"):
        return lambda out: np.asarray(model.expected(jnp.asarray(out)))
    if isinstance(objective, Reconstruction) and objective.likelihood == "bernoulli":
        return lambda logits: 1 / (1 + np.exp(-logits))
    return lambda means: means


@dataclasses.dataclass(frozen=True, eq=False)
class _Tested:
    """Model with the stored test split."""

    model: Any
    preprocess: Callable[[Any], Any]
    test: Mapping[str, np.ndarray]

    @property
    def labels(self) -> np.ndarray:
        return np.asarray(self.test["label"])

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[rows] for name, array in self.test.items()}

    def outputs(self, method: str, rows: np.ndarray) -> np.ndarray:
        """Apply a method of the model to test examples."""
        graphdef, state = nnx.split(self.model)

        @jax.jit
        def apply(state: Any, batch: Any) -> jax.Array:
            model = nnx.merge(graphdef, state, copy=True)
            return getattr(model, method)(self.preprocess(batch)["image"])

        parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        return np.concatenate([np.asarray(apply(state, self.batch(part))) for part in parts])


def _confusion(tested: _Tested) -> np.ndarray:
    logits = tested.outputs("__call__", np.arange(len(tested.labels)))
    if logits.ndim == 3:  # several heads: the last one predicts
        logits = logits[:, -1]
    counts = np.zeros((logits.shape[-1],) * 2, int)
    np.add.at(counts, (tested.labels, logits.argmax(-1)), 1)
    return counts


def _fields(model: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the strongest units of the first layer that reads the image."""
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


def _codes(tested: _Tested) -> dict[str, np.ndarray]:
    count = len(tested.labels)
    rows = np.linspace(0, count - 1, min(MOST_CODES, count)).astype(int)
    codes = tested.outputs("encode", rows)
    return {"codes": codes.reshape(len(rows), -1), "labels": tested.labels[rows]}


def _reconstructions(
    tested: _Tested, shape: tuple[int, ...], output: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the first test image of each class, in the order of classes, and its output."""
    rows = np.unique(tested.labels, return_index=True)[1][:MOST_EXAMPLES]
    inputs = np.asarray(tested.preprocess(tested.batch(rows))["image"])
    outputs = output(tested.outputs("__call__", rows))
    return {"inputs": inputs.reshape(-1, *shape), "outputs": outputs.reshape(-1, *shape)}

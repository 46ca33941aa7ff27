"""What a run has learned: its newest checkpoint, asked on the test split."""

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
from trainers import generative
from trainers.features import config_of, open_experiment
from trainers.gradient import Trainer
from trainers.loop import open_checkpoints
from trainers.objectives import Classification, Reconstruction
from trainers.run_directory import RunDirectory

MOST_FIELDS, MOST_CODES, MOST_EXAMPLES, MOST_IMAGINED, BATCH = 32, 2000, 10, 128, 500


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
        imagined: what a variational autoencoder imagines.
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
    """Asks a run's newest checkpoint.

    Raises:
        UserError: if there is no checkpoint, or config, data and checkpoint don't fit.
    """
    run = RunDirectory.open(record.path)
    if not any(run.checkpoints.glob("*/")):
        raise UserError(f"{record.path} has no checkpoint yet")
    config = config_of(run)
    experiment = open_experiment(config, run, computed=("test",))
    trainer = experiment.trainer
    if not isinstance(trainer, Trainer):
        raise UserError(f"there are no pictures of what trainer.name={config.trainer.name} teaches")
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
            _confusion(_Asked(trainer.model(state), experiment.preprocess, test))
            for state, test in zip(states, tests, strict=True)
        )
    if "image" not in tests[0]:
        return Learned(restored.step, **found)  # Of text there are no pictures.
    asked = _Asked(trainer.model(states[0]), experiment.preprocess, tests[0])
    shape = np.shape(tests[0]["image"])[1:]
    if len(shape) == 3:
        found |= _fields(asked.model, shape)
    if hasattr(asked.model, "encode"):
        found |= _codes(asked)
    if hasattr(asked.model, "encode") and hasattr(asked.model, "decode") and len(shape) == 3:
        found |= _reconstructions(asked, shape, _output(asked.model, trainer.objective))
    if generative.is_generative(config) and len(shape) == 3:
        rows = np.unique(np.linspace(0, len(asked.labels) - 1, MOST_IMAGINED).astype(int))
        images = jnp.asarray(experiment.preprocess(asked.batch(rows))["image"])
        found["imagined"] = imagined(asked.model, trainer.settings, images, shape)
    return Learned(restored.step, **found)


def _output(model: Any, objective: Any) -> Callable[[np.ndarray], np.ndarray]:
    """From what a model gives to the mean that it stands for."""
    if hasattr(model, "expected"):
        return lambda out: np.asarray(model.expected(jnp.asarray(out)))
    if isinstance(objective, Reconstruction) and objective.likelihood == "bernoulli":
        return lambda logits: 1 / (1 + np.exp(-logits))
    return lambda means: means


@dataclasses.dataclass(frozen=True, eq=False)
class _Asked:
    """A model, and the test split as it is stored."""

    model: Any
    preprocess: Callable[[Any], Any]
    test: Mapping[str, np.ndarray]

    @property
    def labels(self) -> np.ndarray:
        return np.asarray(self.test["label"])

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array[rows] for name, array in self.test.items()}

    def answers(self, method: str, rows: np.ndarray) -> np.ndarray:
        """What a method of the model makes of some examples."""
        graphdef, state = nnx.split(self.model)

        @jax.jit
        def answer(state: Any, batch: Any) -> jax.Array:
            model = nnx.merge(graphdef, state, copy=True)
            return getattr(model, method)(self.preprocess(batch)["image"])

        parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        return np.concatenate([np.asarray(answer(state, self.batch(part))) for part in parts])


def _confusion(asked: _Asked) -> np.ndarray:
    logits = asked.answers("__call__", np.arange(len(asked.labels)))
    if logits.ndim == 3:  # of several heads, the last one answers
        logits = logits[:, -1]
    counts = np.zeros((logits.shape[-1],) * 2, int)
    np.add.at(counts, (asked.labels, logits.argmax(-1)), 1)
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


def _codes(asked: _Asked) -> dict[str, np.ndarray]:
    count = len(asked.labels)
    rows = np.linspace(0, count - 1, min(MOST_CODES, count)).astype(int)
    codes = asked.answers("encode", rows)
    return {"codes": codes.reshape(len(rows), -1), "labels": asked.labels[rows]}


def _reconstructions(
    asked: _Asked, shape: tuple[int, ...], output: Callable[[np.ndarray], np.ndarray]
) -> dict[str, np.ndarray]:
    """The first test image of each class, in the order of classes, and what becomes of it."""
    rows = np.unique(asked.labels, return_index=True)[1][:MOST_EXAMPLES]
    inputs = np.asarray(asked.preprocess(asked.batch(rows))["image"])
    outputs = output(asked.answers("__call__", rows))
    return {"inputs": inputs.reshape(-1, *shape), "outputs": outputs.reshape(-1, *shape)}

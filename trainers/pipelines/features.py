"""Features: data encoded by the frozen model of another run."""

import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from grlu.errors import UserError
from input_pipeline import Data
from trainers.loop.experiment import Experiment
from trainers.loop.state import TrainState

_BATCH = 1000


def encoded(
    data: Data,
    experiment: Experiment,
    state: TrainState | None,
    computed: Collection[str],
    path: Any,
) -> Data:
    """Return data whose images are the features of a trained model.

    Each feature is standardised by its mean and standard deviation over the model's own training
    data: a constant shared by all examples would drown their differences.

    Args:
        data: data of images.
        experiment: experiment of the model's run, in the folder `path`.
        state: the model's state, with a leading axis of seeds if several; None to compute nothing.
        computed: splits to compute; the features of all other splits are zeros.
    """
    first = {k: a[0, :1] if experiment.by_seed else a[:1] for k, a in experiment.test.items()}
    shape = jax.eval_shape(experiment.preprocess, first)["image"].shape[1:]
    if shape != data.example_shape:
        raise UserError(
            f"the model in {path} takes examples of shape {shape}, but those of {data.name} have "
            f"shape {data.example_shape}"
        )
    trainer, seeds = experiment.trainer, experiment.run.seeds
    if data.by_seed and seeds != len(data.test["label"]):
        raise UserError(
            f"the model in {path} must have as many seeds as its features "
            f"({len(data.test['label'])}), got {seeds}"
        )
    one = {"image": jax.ShapeDtypeStruct((1, *shape), jnp.float32)}
    begin = jax.eval_shape(trainer.init, jax.random.key(0))
    units = math.prod(jax.eval_shape(trainer.encode, begin, one).shape)
    lead = (seeds,) if seeds > 1 else ()

    if state is not None:
        own = _codes(experiment, state, experiment.train, experiment.preprocess)
        mean = own.mean(-2, keepdims=True, dtype=np.float64)
        sd = own.std(-2, keepdims=True, dtype=np.float64)
        # Avoid amplifying units that are almost silent.
        sd = np.maximum(sd, 0.1 * np.sqrt((sd**2).mean(-1, keepdims=True)) + 1e-8)

    def split(name: str) -> Any:
        arrays = getattr(data, name)
        if arrays is None:
            return None
        labels = np.broadcast_to(arrays["label"], (*lead, arrays["label"].shape[-1]))
        if state is None or name not in computed:
            zeros = np.broadcast_to(np.float32(0), (*labels.shape, units))
            return {"image": zeros, "label": labels}
        # The model was often trained on the same data.
        same = arrays is experiment.train and data.preprocess is experiment.preprocess
        codes = own if same else _codes(experiment, state, arrays, data.preprocess)
        return {"image": ((codes - mean) / sd).astype(np.float32), "label": labels}

    return Data(
        name=f"the features of {data.name}",
        train=split("train"),
        validation=split("validation"),
        test=split("test"),
        preprocess=_identity,
        example_shape=(units,),
        num_classes=data.num_classes,
        by_seed=seeds > 1,
    )


def _codes(
    experiment: Experiment, state: TrainState, arrays: Any, preprocess: Callable[[Any], Any]
) -> np.ndarray:
    """Return the features of a split, (N, units), with a leading axis of seeds if several."""

    def encode(state: TrainState, batch: Any) -> jax.Array:
        codes = experiment.trainer.encode(state, preprocess(batch))
        return codes.reshape(len(codes), -1).astype(jnp.float32)

    several, by_seed = experiment.run.seeds > 1, experiment.by_seed
    if several:
        encode = jax.vmap(encode, in_axes=(0, 0 if by_seed else None))
    encode = jax.jit(encode)
    parts = []
    for start in range(0, arrays["label"].shape[-1], _BATCH):
        rows = np.s_[:, start : start + _BATCH] if by_seed else np.s_[start : start + _BATCH]
        parts.append(np.asarray(encode(state, {k: a[rows] for k, a in arrays.items()})))
    return np.concatenate(parts, 1 if several else 0)


def _identity(batch: Any) -> Any:
    return batch

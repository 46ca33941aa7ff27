"""Data as a run sees them: a data set, or the features that another run's model makes of it.

A config may link its run to others, by paths relative to its own folder: `features` names the run
whose trained model encodes the data, which may itself see features; `start` the run with whose
weights this one begins; `judge` the run of the reward model that pays it. A pipeline writes these
links between its stages. `run.init_from` names a run whose weights are taken where they fit, and
only at the very beginning.
"""

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import input_pipeline
from checkpoints import Restored
from grlu.errors import UserError
from input_pipeline import Data
from models.gpt2_weights import gpt2_from_file
from trainers.compatibility import require_vocabulary
from trainers.config import build, load_config, validate
from trainers.experiment import SECTIONS, make_experiment
from trainers.loop import open_checkpoints
from trainers.pairs import PairTrainer
from trainers.protocol import Experiment
from trainers.run_directory import RunDirectory
from trainers.state import TrainState
from trainers.values import plain

_log = logging.getLogger("grlu")
SPLITS = ("train", "validation", "test")
_BATCH = 1000
# How a model sees the data is the model's own business, not that of the run that uses it.
_OF_THE_MODEL = ("normalize", "flatten")
# Features are made of the data themselves, not of a draw that a model learned from.
_NOT_FOR_FEATURES = ("binarize",)


def config_of(run: RunDirectory, overrides: Sequence[str] = ()) -> ConfigDict:
    """The complete config that a run's folder holds, with `overrides`.

    Raises:
        UserError: if there is no run, or it is a pipeline.
    """
    config = load_config(RunDirectory.open(run.path).config, overrides)
    if "stages" in config:
        names = ", ".join(str(run.stage(stage["name"]).path) for stage in config.stages)
        raise UserError(f"{run.path} is a pipeline: name one of its stages, {names}")
    return validate(config, SECTIONS)


def open_experiment(
    config: ConfigDict,
    run: RunDirectory,
    *,
    computed: Collection[str] = SPLITS,
    begun: bool | None = None,
) -> Experiment:
    """The experiment of a run in its folder, with its links followed.

    Args:
        config: its complete config.
        run: its folder.
        computed: the splits whose features are wanted; those of the others are zeros. With all
            splits the run is to be trained, and its `start` is read.
        begun: whether it has been trained already, by default whether it has a checkpoint.

    Raises:
        UserError: if parts don't fit each other, or a run that is linked to isn't trained.
    """
    experiment, data = fresh(config, run, computed)
    linked: dict[str, Any] = {}
    if "judge" in config:
        judge = _judge(_linked(run, config.judge), data, trained=bool(computed))
        linked |= {"judge": judge}
    training = set(computed) == set(SPLITS)
    if "start" in config:
        other = _linked(run, config.start)
        before, seen = fresh(config_of(other), other, ())
        require_vocabulary("start", data, seen, other.path)
        expected = jax.tree.map(jnp.shape, jax.eval_shape(experiment.init).begins)
        found = jax.tree.map(jnp.shape, jax.eval_shape(before.init).params)
        if expected != found:
            raise UserError(
                f"start: the weights of {other.path} don't fit: this run must have the same model, "
                "features of the same size, as many classes and as many seeds"
            )
        if training:
            linked |= {"start": restored(other, best=False, seen=before).state}
    if linked:
        experiment = make_experiment(config, data, **linked)
    begun = any(run.checkpoints.glob("*/")) if begun is None else begun
    warm = training and not begun and "start" not in config
    return warm_started(experiment) if warm else experiment


def _judge(run: RunDirectory, data: Data, *, trained: bool) -> Any:
    """The reward that the model of a run pays; not `trained`, its checkpoint is not read.

    Raises:
        UserError: if it is no reward model, of several seeds, or of other tokens than `data`.
    """
    experiment, seen = fresh(config_of(run), run, ())
    if not isinstance(experiment.trainer, PairTrainer) or not experiment.trainer.settings.scores:
        raise UserError(f"judge: {run.path} is no run of a reward model (trainer reward_model)")
    if experiment.run.seeds > 1:
        raise UserError(f"judge: {run.path} has several seeds, and a judge must be one model")
    require_vocabulary("judge", data, seen, run.path)
    if not trained:
        return experiment.trainer.judge(None)
    return experiment.trainer.judge(restored(run, best=False, seen=experiment).state)


def fresh(
    config: ConfigDict, run: RunDirectory, computed: Collection[str]
) -> tuple[Experiment, Data]:
    """The experiment of a run, with new weights, and its data; `computed` as above."""
    data = _data(plain(config.dataset), config.get("features"), run, computed)
    return make_experiment(config, data), data


def restored(
    run: RunDirectory, *, best: bool, seen: Experiment | None = None
) -> Restored[TrainState]:
    """The newest (or best) checkpoint of a run; of one with patience always the best.

    `seen` is its experiment, if it is at hand.

    Raises:
        UserError: if there is none.
    """
    experiment = seen or fresh(config_of(run), run, ())[0]
    with open_checkpoints(experiment, run) as checkpoints:
        if checkpoints.latest_step is None:
            raise UserError(
                f"{run.path} has no checkpoint yet; 'grlu resume {run.resumed}' trains it"
            )
        best = best or experiment.run.patience is not None
        return checkpoints.restore(experiment.init(), best=best)


def warm_started(experiment: Experiment) -> Experiment:
    """An experiment that begins with the weights of `run.init_from`, where these fit.

    They are those of a run, or of a GPT-2 in a safetensors file (`models.gpt2_weights`).

    Raises:
        UserError: if no array of that run has the name and shape of one of this.
    """
    if experiment.run.init_from is None:
        return experiment
    path, state = pathlib.Path(experiment.run.init_from), experiment.init()
    own = nnx.to_flat_state(state.begins)
    if path.suffix == ".safetensors":
        places = [len(variable[...]) for name, variable in own if name == ("positions",)]
        given: Any = nnx.state(gpt2_from_file(path, block=max(places, default=None)), nnx.Param)
    else:
        given = restored(RunDirectory.open(path), best=True).state.params
    theirs = dict(nnx.to_flat_state(given))
    taken = {
        path: theirs[path] if path in theirs and theirs[path].shape == variable.shape else variable
        for path, variable in own
    }
    count = sum(taken[path] is not variable for path, variable in own)
    if not count:
        raise UserError(
            f"run.init_from: none of the {len(own)} arrays of this model has the name and shape of "
            f"one in {path}"
        )
    _log.info("%d of %d arrays begin as in %s", count, len(own), path)
    start = state.replace(params=nnx.from_flat_state(taken))
    return dataclasses.replace(experiment, start=start)


def _linked(run: RunDirectory, link: str) -> RunDirectory:
    return RunDirectory(pathlib.Path(run.path, link).resolve())


def _data(
    section: dict[str, Any], features: str | None, run: RunDirectory, computed: Collection[str]
) -> Data:
    if features is None:
        return _loaded(json.dumps(section, sort_keys=True))
    source = _linked(run, features)
    config = config_of(source)
    own = {k: v for k, v in config.dataset.items() if k in _OF_THE_MODEL and k in section}
    own |= {k: None for k in _NOT_FOR_FEATURES if k in section}
    data = _data({**section, **own}, config.get("features"), source, computed)
    return _encoded(data, config, source, computed)


@functools.lru_cache(maxsize=8)
def _loaded(section: str) -> Data:
    return build(input_pipeline.load, json.loads(section), "dataset")


def _encoded(
    data: Data, config: ConfigDict, source: RunDirectory, computed: Collection[str]
) -> Data:
    """The features that the model of `source` makes of `data`, by its best checkpoint.

    Each is standardised, by its mean and deviation over the data on which the model was trained: a
    constant that all examples share would drown what tells them apart.
    """
    if data.tokenizer is not None:
        raise UserError(
            f"features: {source.path} is a run on text, whose model gives no features of an "
            "example; a stage builds on another one's language model by `start`"
        )
    experiment, _ = fresh(config, source, ("train",) if computed else ())
    shape = _example_shape(experiment)
    if shape != data.example_shape:
        raise UserError(
            f"the model in {source.path} takes examples of shape {shape}, but those of "
            f"{data.name} have shape {data.example_shape}"
        )
    trainer, seeds = experiment.trainer, experiment.run.seeds
    if data.by_seed and seeds != len(data.test["label"]):
        raise UserError(f"the model in {source.path} has another number of seeds than its features")
    key, image = jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    units = jax.eval_shape(
        lambda key, image: trainer.encode(trainer.init(key), {"image": image}).reshape(1, -1),
        key,
        image,
    ).shape[-1]
    lead = (seeds,) if seeds > 1 else ()

    if computed:
        state = restored(source, best=True, seen=experiment).state
        own = _codes(experiment, state, experiment.train, experiment.preprocess)
        mean = own.mean(-2, keepdims=True, dtype=np.float64)
        sd = own.std(-2, keepdims=True, dtype=np.float64)
        # Units that are all but silent are not blown up.
        sd = np.maximum(sd, 0.1 * np.sqrt((sd**2).mean(-1, keepdims=True)) + 1e-8)

    def split(name: str) -> Any:
        arrays = getattr(data, name)
        if arrays is None:
            return None
        labels = np.broadcast_to(arrays["label"], (*lead, arrays["label"].shape[-1]))
        if name not in computed:
            return {
                "image": np.broadcast_to(np.float32(0), (*labels.shape, units)),
                "label": labels,
            }
        # What the model was trained on is often what is asked for.
        seen = arrays is experiment.train and data.preprocess is experiment.preprocess
        codes = own if seen else _codes(experiment, state, arrays, data.preprocess)
        return {"image": ((codes - mean) / sd).astype(np.float32), "label": labels}

    return Data(
        name=f"the features of {data.name}",
        train=split("train"),
        validation=split("validation"),
        test=split("test"),
        preprocess=_as_it_is,
        example_shape=(units,),
        num_classes=data.num_classes,
        by_seed=seeds > 1,
    )


def _codes(
    experiment: Experiment, state: TrainState, arrays: Any, preprocess: Callable[[Any], Any]
) -> np.ndarray:
    """Features of a split, shape (N, units), with a leading axis of seeds if there are several."""

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


def _as_it_is(batch: Any) -> Any:
    return batch


def _example_shape(experiment: Experiment) -> tuple[int, ...]:
    arrays = experiment.test
    one = {k: a[0, :1] if experiment.by_seed else a[:1] for k, a in arrays.items()}
    return jax.eval_shape(experiment.preprocess, one)["image"].shape[1:]

"""Data as a run sees them: a data set, or the features that another run's model makes of it.

A config may link its run to others, by paths relative to its own folder: `features` names the run
whose trained model encodes the data, which may itself see features; `start` the run with whose
weights this one begins; `judge` the run of the reward model that pays it. A pipeline writes these
links between its stages. `run.init_from` names a run whose weights are taken where they fit.
`trainer.reference` may name a policy's reference.

A run needs `start`, `run.init_from` and the weights of its reference only until it has a
checkpoint. Of the others it holds copies (`trainers/linked.py`); runs made before there were copies
follow the links.
"""

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
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
from trainers.compatibility import require_vocabulary, require_writer
from trainers.config import build, load_config, validate
from trainers.experiment import SECTIONS, make_experiment
from trainers.loop import open_checkpoints
from trainers.pairs import PairTrainer
from trainers.paths import kept
from trainers.protocol import Experiment
from trainers.references import NAMED, frozen
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

    It names the run's copies of the user's files that are gone.

    Raises:
        UserError: if there is no run, or it is a pipeline.
    """
    config = load_config(RunDirectory.open(run.path).config, overrides)
    if "stages" in config:
        names = ", ".join(str(run.stage(stage["name"]).path) for stage in config.stages)
        raise UserError(f"{run.path} is a pipeline: name one of its stages, {names}")
    return kept(validate(config, SECTIONS), run.files)


def open_experiment(
    config: ConfigDict,
    run: RunDirectory | None,
    *,
    computed: Collection[str] = SPLITS,
    begun: bool | None = None,
) -> Experiment:
    """Return the experiment of a run, with its links followed.

    Args:
        config: its complete config.
        run: its folder, or None before it is made, when all links are absolute.
        computed: the splits whose features are wanted; those of the others are zeros. With all
            splits the run is to be trained, and begins with the weights that its links name.
        begun: whether it has been trained already, so that its own checkpoints hold those weights;
            by default whether it has one.

    Raises:
        UserError: if parts don't fit each other, or a run that is linked to isn't trained.
    """
    training = set(computed) == set(SPLITS)
    if begun is None:
        begun = run is not None and run.trained
    data = _data(plain(config.dataset), config.get("features"), run, computed)
    linked = _reference(config, run, data, weights=training and not begun)
    borrowed = bool(linked)
    if "judge" in config:
        judge = linked_run(run, "judge", config.judge)
        linked["judge"] = _judge(judge, data, trained=bool(computed))
    experiment = make_experiment(config, data, **linked)
    if begun:
        return experiment
    if "start" in config:
        experiment = _started(experiment, config.start, run, data, weights=training)
    elif training:
        experiment = warm_started(experiment)
    borrowed = borrowed or experiment.start is not None
    return dataclasses.replace(experiment, borrowed=borrowed)


def linked_run(
    run: RunDirectory | None, kind: str, link: str, *, copied: bool = True
) -> RunDirectory:
    """Return the run that a config links to, or the copy that the run itself holds.

    Args:
        run: the run that links, or None before it is made.
        kind: "features", "start", "judge" or "reference".
        link: path of the other run, relative to the folder of `run`.
        copied: whether a copy will do, in which a reference has no weights.

    Raises:
        UserError: if there is neither.
    """
    if run is None:
        return RunDirectory.open(pathlib.Path(link))
    copy = run.linked(kind)
    if copied and copy.config.is_file():
        return copy
    other = RunDirectory(pathlib.Path(run.path, link).resolve())
    if not other.config.is_file():
        lacks = "keeps no copy of it" if copied else "has no checkpoint to continue from"
        raise UserError(
            f"{kind}: {other.path} holds no run, and {run.path} {lacks}: move it back there"
        )
    return other


def reference_link(config: Mapping[str, Any]) -> str | None:
    """Return the path of the run that is a policy's reference, or None."""
    named = config["trainer"].get("reference")
    return None if named in (None, *NAMED) else named


def _started(
    experiment: Experiment, link: str, run: RunDirectory | None, data: Data, *, weights: bool
) -> Experiment:
    """Return an experiment that begins with the state of another run; its shapes are checked.

    Raises:
        UserError: if the shapes or the vocabularies differ.
    """
    other = linked_run(run, "start", link, copied=False)
    before, seen = fresh(config_of(other), other, ())
    require_vocabulary("start", data, seen, other.path)
    expected = jax.tree.map(jnp.shape, jax.eval_shape(experiment.init).begins)
    found = jax.tree.map(jnp.shape, jax.eval_shape(before.init).params)
    if expected != found:
        raise UserError(
            f"start: the weights of {other.path} don't fit: this run must have the same model, "
            "features of the same size, as many classes and as many seeds"
        )
    if not weights:
        return experiment
    return dataclasses.replace(experiment, start=restored(other, best=False, seen=before).state)


def _reference(
    config: ConfigDict, run: RunDirectory | None, data: Data, *, weights: bool
) -> dict[str, Any]:
    """Return, by "reference", the model of the run that a policy's reference is, if it is a run.

    Its weights are restored where `weights` are wanted, and new otherwise: the right ones are then
    in the run's own state.

    Raises:
        UserError: if there is no such run, or it is no language model of the same vocabulary.
    """
    link = reference_link(config)
    if link is None:
        return {}
    try:
        other = linked_run(run, "reference", link, copied=not weights)
    except UserError as error:
        if run is not None and run.trained:
            raise
        raise UserError(
            f"trainer.reference must be start, random, bigram, none or the folder of a run: {error}"
        ) from error
    experiment, seen = fresh(config_of(other), other, ())
    try:
        require_writer(other, experiment, seen)
    except UserError as error:
        raise UserError(f"trainer.reference must be a language model: {error}") from error
    require_vocabulary("trainer.reference", data, seen, other.path)
    if experiment.run.seeds > 1:
        raise UserError(
            f"trainer.reference: {other.path} has several seeds, and a reference must be one model"
        )
    state = restored(other, best=False, seen=experiment).state if weights else experiment.init()
    model: Any = experiment.trainer.model(state)  # type: ignore[attr-defined]
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    stored = (params, rest)
    return {
        "reference": frozen(
            graphdef, config.trainer.temperature, lambda key: jax.tree.map(jnp.asarray, stored)
        )
    }


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
    return make_experiment(config, data, **_reference(config, run, data, weights=False)), data


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


def _data(
    section: dict[str, Any],
    features: str | None,
    run: RunDirectory | None,
    computed: Collection[str],
) -> Data:
    if features is None:
        return _loaded(json.dumps(section, sort_keys=True))
    source = linked_run(run, "features", features)
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

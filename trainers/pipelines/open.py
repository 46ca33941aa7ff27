"""Experiments of runs with all their links followed."""

import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

import input_pipeline
from checkpoints import Restored
from grlu.errors import UserError
from input_pipeline import Data
from models.text.gpt2_weights import gpt2_from_file
from trainers.build import make_experiment
from trainers.config.schema import build
from trainers.config.values import plain
from trainers.loop.experiment import Experiment
from trainers.loop.loop import open_checkpoints
from trainers.loop.run_dir import RunDirectory
from trainers.loop.state import TrainState
from trainers.objectives.registry import trait
from trainers.pipelines.features import encoded
from trainers.pipelines.links import config_of, linked_run, reference_link
from trainers.policies.preference import PreferenceTrainer
from trainers.policies.reference import frozen

_log = logging.getLogger("grlu")
SPLITS = ("train", "validation", "test")
# Keys of `dataset` that come from the run of the model that encodes the data.
_OF_THE_MODEL = ("normalize", "flatten")
# Features are computed from the original data, not from a binarized sample.
_NOT_FOR_FEATURES = ("binarize",)


def open_experiment(
    config: ConfigDict,
    run: RunDirectory | None,
    *,
    computed: Collection[str] = SPLITS,
    begun: bool | None = None,
) -> Experiment:
    """Return the experiment of a run with its links followed.

    Args:
        config: complete config of the run.
        run: folder of the run, or None before it exists, when all links are absolute.
        computed: splits whose features are computed; other splits get zeros. If it has all splits,
            the run will be trained, and starts from the weights of its links.
        begun: True if the run's checkpoints hold those weights; by default, if it has one.
    """
    training = set(computed) == set(SPLITS)
    if begun is None:
        begun = run is not None and run.trained
    data = _data(plain(config.dataset), config.get("features"), run, computed)
    linked = _reference(config, run, data, weights=training and not begun)
    borrowed = bool(linked)
    if "judge" in config:
        linked["judge"] = _judge(linked_run(run, "judge", config.judge), data, bool(computed))
    experiment = make_experiment(config, data, **linked)
    if begun:
        return experiment
    if "start" in config:
        experiment = _started(experiment, config.start, run, data, weights=training)
    elif training:
        experiment = warm_started(experiment)
    borrowed = borrowed or experiment.start is not None
    return dataclasses.replace(experiment, borrowed=borrowed)


def fresh(
    run: RunDirectory, config: ConfigDict | None = None, computed: Collection[str] = ()
) -> tuple[Experiment, Data]:
    """Return the experiment of a run with new weights and without a judge, and its data."""
    config = config_of(run) if config is None else config
    data = _data(plain(config.dataset), config.get("features"), run, computed)
    return make_experiment(config, data, **_reference(config, run, data, weights=False)), data


def restored(
    run: RunDirectory, *, best: bool, seen: Experiment | None = None
) -> Restored[TrainState]:
    """Restore the newest (or best) checkpoint of a run; with `run.patience` always the best.

    `seen` is the run's experiment, if already built.
    """
    experiment = seen or fresh(run)[0]
    with open_checkpoints(experiment, run) as checkpoints:
        if checkpoints.latest_step is None:
            raise UserError(
                f"{run.path} has no checkpoint yet; 'grlu resume {run.resumed}' trains it"
            )
        best = best or experiment.run.patience is not None
        return checkpoints.restore(experiment.init(), best=best)


def require_writer(run: RunDirectory, experiment: Experiment, data: Data) -> None:
    """Raise UserError unless the model of a run writes text; the error describes the model."""
    trainer = experiment.trainer
    if isinstance(trainer, PreferenceTrainer) and trainer.settings.scores:
        raise UserError(
            f"{run.path} is a reward model, which scores texts and writes none: name the policy "
            "that it scores, or the language model that it started from"
        )
    if data.tokenizer is None:
        described = trait(trainer.settings.objective, "described")
        raise UserError(
            f"{run.path} writes no text, it is {described.format(data=data.name, run=run.path)}"
        )


def warm_started(experiment: Experiment) -> Experiment:
    """Return an experiment that starts from the weights of `run.init_from` that fit.

    The weights are those of a run, or of a GPT-2 (`models.text.gpt2_weights`).
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
            f"run.init_from: none of the {len(own)} arrays of this model matches an array in "
            f"{path} in name and shape"
        )
    _log.info("%d of %d arrays start from %s", count, len(own), path)
    start = state.replace(params=nnx.from_flat_state(taken))
    return dataclasses.replace(experiment, start=start)


def _started(
    experiment: Experiment, link: str, run: RunDirectory | None, data: Data, *, weights: bool
) -> Experiment:
    """Return an experiment that starts from another run's state, if `weights`."""
    other = linked_run(run, "start", link, copied=False)
    before, seen = fresh(other)
    _require_vocabulary("start", data, seen, other)
    expected = jax.tree.map(jnp.shape, jax.eval_shape(experiment.init).begins)
    found = jax.tree.map(jnp.shape, jax.eval_shape(before.init).params)
    if expected != found:
        raise UserError(
            f"start: the weights of {other.path} do not fit: both runs must have the same model, "
            "size of features, number of classes and number of seeds"
        )
    if not weights:
        return experiment
    return dataclasses.replace(experiment, start=restored(other, best=False, seen=before).state)


def _reference(
    config: ConfigDict, run: RunDirectory | None, data: Data, *, weights: bool
) -> dict[str, Any]:
    """Return {"reference": a frozen policy, new without `weights`} if the config names a run."""
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
    experiment, seen = fresh(other)
    try:
        require_writer(other, experiment, seen)
    except UserError as error:
        raise UserError(f"trainer.reference must be a language model: {error}") from error
    state = _one_state("trainer.reference", other, experiment, seen, data, trained=weights)
    graphdef, *stored = nnx.split(experiment.trainer.model(state), nnx.Param, ...)
    arrays = jax.tree.map(jnp.asarray, tuple(stored))
    return {"reference": frozen(graphdef, config.trainer.temperature, lambda key: arrays)}


def _judge(run: RunDirectory, data: Data, trained: bool) -> Any:
    """Return the reward model of a run, with new weights unless `trained`."""
    experiment, seen = fresh(run)
    trainer = experiment.trainer
    if not isinstance(trainer, PreferenceTrainer) or not trainer.settings.scores:
        raise UserError(f"judge: {run.path} is no run of a reward model (trainer reward_model)")
    return trainer.judge(_one_state("judge", run, experiment, seen, data, trained=trained))


def _one_state(
    what: str, run: RunDirectory, experiment: Experiment, seen: Data, data: Data, *, trained: bool
) -> TrainState:
    """Return the state of a linked run with one seed and the tokens of `data`."""
    if experiment.run.seeds > 1:
        kind = what.rpartition(".")[2]
        raise UserError(f"{what}: {run.path} has several seeds, and a {kind} must be one model")
    _require_vocabulary(what, data, seen, run)
    return restored(run, best=False, seen=experiment).state if trained else experiment.init()


def _require_vocabulary(what: str, data: Data, other: Data, run: RunDirectory) -> None:
    """Raise UserError if a run's data and those of another `run` differ in their tokens."""
    own, theirs = (d.tokenizer.vocabulary if d.tokenizer else None for d in (data, other))
    if own != theirs:
        raise UserError(
            f"{what}: the run in {run.path} has other tokens, {theirs or 'none'}, than this run's "
            f"data, {own or 'none'}: both need the same text, or dataset.tokenizer=byte or gpt2"
        )


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
    if data.tokenizer is not None:
        raise UserError(
            f"features: {source.path} is a run on text, whose model gives no features of an "
            "example; a stage builds on another one's language model by `start`"
        )
    experiment, _ = fresh(source, config, ("train",) if computed else ())
    state = restored(source, best=True, seen=experiment).state if computed else None
    return encoded(data, experiment, state, computed, source.path)


@functools.lru_cache(maxsize=8)
def _loaded(section: str) -> Data:
    return build(input_pipeline.load, json.loads(section), "dataset")

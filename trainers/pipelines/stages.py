"""Pipelines: a folder of runs, one per stage, where stages build on preceding ones.

A pipeline's config has `stages` instead of `model` and `trainer`: a list of

    {"name": "slow", "model": {...}, "trainer": {...}}

Each stage is an ordinary run in `stages/NAME/`; they train in this order. Keys of a stage:

- `features`: name of a preceding stage whose frozen model encodes the data, or null for the data
  themselves. The default is the preceding stage, or the features of the stage of `start`.
- `start`: name of a preceding stage to start from: its weights, and its `model` and `trainer`
  except for the keys given here, as in a sequence of tasks (`trainers.pipelines.forgetting`).
- `judge`: name of a preceding stage whose reward model is a policy's reward "judge".
- `backbone`: folder of a finished run to copy, instead of `model` and `trainer`.
- `dataset`, `run`, `mesh`: changes to the pipeline's own sections.

Set `trainer.epochs` to 0 for an untrained model, as a control.
"""

import contextlib
import functools
import json
import logging
import pathlib
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from grlu.errors import UserError
from trainers.config.load import STAGE_KEYS, to_json
from trainers.config.schema import (
    INHERITED,
    LINKS,
    factory_of,
    schema,
    section_of,
    unknown,
    validate,
)
from trainers.config.values import plain
from trainers.devices import processes
from trainers.loop.experiment import Experiment
from trainers.loop.loop import Result, fit, require_runnable
from trainers.loop.run_dir import RunDirectory, latest_metrics, logged_to, write_atomically
from trainers.pipelines import links
from trainers.pipelines.forgetting import measured
from trainers.pipelines.links import config_of
from trainers.pipelines.open import open_experiment
from trainers.registry import SECTIONS

_log = logging.getLogger("grlu")
_SHARED = ("dataset", "run", "mesh")
_COMMON = ("seed", *_SHARED, "stages")
_KEYS = ("name", *STAGE_KEYS, *_SHARED, "model", "trainer")


def complete(config: Mapping[str, Any]) -> ConfigDict:
    """Return a validated pipeline in which every stage has all its keys."""
    given = plain(config)
    for where in given:
        if where not in (*_COMMON, INHERITED):
            message = f"a pipeline has no section {where!r} except in its stages"
            raise unknown(f"{message} (stages.NAME.{where})", where, _COMMON)
    for where in _SHARED:
        section_of(given, where)
    stages: dict[str, dict[str, Any]] = {}
    if not isinstance(given["stages"], tuple) or not given["stages"]:
        raise UserError("stages must be a list of stages, each with a name")
    for entry in given["stages"]:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name) or name in stages:
            raise UserError(f"each stage must have a unique name of letters, got {name!r}")
        with _errors(f"stage {name!r}: "):
            stages[name] = _complete_stage(given, entry, stages)
    if "dataset" in given.pop(INHERITED, {}):
        known = schema(SECTIONS["dataset"](given["dataset"]["name"]))
        given["dataset"] = _only(given["dataset"], known)
    return ConfigDict(given | {"stages": tuple(stages.values())}, type_safe=False)


def stage_config(pipeline: Mapping[str, Any], stage: Mapping[str, Any]) -> ConfigDict:
    """Return the config of a stage's own run, unless the stage is a copied backbone."""
    own = {k: stage[k] for k in ("model", "trainer") if k in stage}
    own[INHERITED] = pipeline.get(INHERITED, {}) | stage.get(INHERITED, {})
    for where in _SHARED:
        common, change = section_of(pipeline, where), section_of(stage, where)
        own[where] = change if _renames(change, common) else common | change
    links = {k: f"../{stage[k]}" for k in LINKS if stage[k] is not None}
    return validate({"seed": pipeline.get("seed", 0), **own, **links}, SECTIONS)


def check(pipeline: ConfigDict) -> list[Experiment]:
    """Build every stage once, on features of zeros, to find all mistakes before training."""
    built = []
    with tempfile.TemporaryDirectory() as scratch, _errors(without=f"{scratch}/"):
        run = RunDirectory(pathlib.Path(scratch))
        for stage in (given := plain(pipeline))["stages"]:
            with _errors(f"stage {stage['name']!r}: "):
                own = _prepare(given, stage, run)
                experiment = open_experiment(config_of(own), own, computed=())
                require_runnable(experiment)
                built.append(experiment)
    return built


def fit_stages(
    pipeline: ConfigDict, run: RunDirectory, *, progress: bool, overrides: Sequence[str] = ()
) -> Result:
    """Train the unfinished stages in order, with overrides of their configs for this call."""
    given = plain(pipeline)
    steps = 0
    with logged_to(run.log):
        for number, stage in enumerate(given["stages"], 1):
            own = run.stage(stage["name"])
            title = f"stage {stage['name']} ({number} of {len(given['stages'])})"
            with _errors(f"stage {stage['name']!r}: "):
                processes.by_first(functools.partial(_prepare, given, stage, run), title)
                config = config_of(own, overrides)
                if stage["backbone"] is not None:
                    _log.info("%s is the run %s", title, stage["backbone"])
                    continue
                if own.trained:  # Features are slow to compute and not needed here.
                    steps = open_experiment(config, own, computed=()).steps
                    if (own.checkpoints / str(steps)).is_dir():
                        _log.info("%s is finished", title)
                        continue
                _log.info("%s: training in %s", title, own.path)
                with logged_to(own.log):
                    experiment = open_experiment(config, own)
                    steps = experiment.steps
                    fit(experiment, own, progress=progress)
        metrics = {s["name"]: latest_metrics(run.stage(s["name"]).metrics) for s in given["stages"]}
        summary = {"stages": metrics, **measured(run, given["stages"])}
        if processes.first():
            write_atomically(run.summary, json.dumps(summary, indent=2) + "\n")
    return Result(run.path, steps, metrics[given["stages"][-1]["name"]])


def keep(pipeline: ConfigDict, run: RunDirectory) -> None:
    """Copy the runs and files that the stages need into the folder of a pipeline."""
    given = plain(pipeline)
    for stage in given["stages"]:
        if stage["backbone"] is not None:
            _prepare(given, stage, run)
        else:  # Its links lead to preceding stages.
            links.keep({"trainer": stage["trainer"]}, run.stage(stage["name"]))


def last_stage(pipeline: ConfigDict, run: RunDirectory) -> RunDirectory:
    """Return the run of the last stage, which evaluates the pipeline end to end."""
    last = run.stage(plain(pipeline)["stages"][-1]["name"])
    if not last.config.is_file():
        raise UserError(f"{run.path} is not finished; 'grlu resume {run.path}' trains it")
    return last


def _complete_stage(
    pipeline: dict[str, Any], entry: dict[str, Any], before: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return a stage with all its keys, and with complete model and trainer."""
    for key in entry:
        if key not in (*_KEYS, INHERITED):
            raise unknown(f"there is no key {key!r}", key, _KEYS)
    start = _earlier("start", entry.get("start"), before)
    backbone = entry.get("backbone")
    if backbone is not None and (start or "model" in entry or "trainer" in entry):
        raise UserError("a backbone replaces model, trainer and start: give only the backbone")
    default = before[start]["features"] if start else next(reversed(before), None)
    stage = {
        "name": entry["name"],
        "features": _earlier("features", entry.get("features", default), before),
        "start": start,
        "judge": _earlier("judge", entry.get("judge"), before),
        "backbone": backbone,
    }
    stage |= {k: section_of(entry, k) for k in _SHARED if k in entry}
    if backbone is not None:
        return stage
    for where in ("model", "trainer"):
        section = section_of(entry, where)
        taken = _taken_over(before[start], where, section) if start else {}
        if _renames(section, taken):
            stage[where] = section
        else:  # A new objective does not inherit the preceding one's keys.
            known = schema(factory_of(SECTIONS[where], taken | section, where))
            stage[where] = _only(taken, known) | section
    config = plain(stage_config(pipeline, stage | {INHERITED: entry.get(INHERITED, {})}))
    stage |= {where: config[where] for where in ("model", "trainer")}
    if "dataset" in stage:
        stage["dataset"] = _only(stage["dataset"], config["dataset"])
    return stage


def _renames(section: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return section.get("name", other.get("name")) != other.get("name")


def _only(section: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return a section with its name and its known keys."""
    return {k: v for k, v in section.items() if k in known or k == "name"}


def _taken_over(stage: Mapping[str, Any], where: str, section: Mapping[str, Any]) -> Any:
    """Return the model or trainer of a stage that another, with its own `section`, starts from."""
    if stage["backbone"] is None:
        return stage[where]
    run = RunDirectory(pathlib.Path(stage["backbone"]))
    # A finished pipeline's config is complete: it does not need the run that it was built on.
    if "name" in section and not run.config.is_file():
        return {}
    return plain(config_of(run)[where])


def _earlier(key: str, name: Any, before: Mapping[str, Any]) -> str | None:
    if name is not None and name not in before:
        raise unknown(f"{key} must name an earlier stage, got {name!r}", name, before)
    return name


def _prepare(
    pipeline: Mapping[str, Any], stage: Mapping[str, Any], run: RunDirectory
) -> RunDirectory:
    """Return the run of a stage; create its folder, with its config, unless it exists."""
    own = run.stage(stage["name"])
    if own.config.is_file():
        return own
    own.path.mkdir(parents=True, exist_ok=True)
    if stage["backbone"] is None:
        write_atomically(own.config, to_json(stage_config(pipeline, stage)))
        return own
    source = RunDirectory(pathlib.Path(stage["backbone"]))
    if source.metrics.is_file():
        shutil.copy(source.metrics, own.metrics)
    links.copy_run(source, own, judge=True)
    return own


@contextlib.contextmanager
def _errors(prefix: str = "", *, without: str = "") -> Iterator[None]:
    """Add a prefix to error messages, and remove a text from them."""
    try:
        yield
    except UserError as error:
        raise UserError(prefix + str(error).replace(without, "")) from error

"""Pipelines: a folder of runs, one a stage: slow systems that are then frozen, fast ones on top.

A pipeline's config has `stages` in the place of `model` and `trainer`: a list of

    {"name": "slow", "model": {...}, "trainer": {...}}

Each is an ordinary run in `stages/NAME/`, trained one after the other. Its keys:

- `features`: name of the earlier stage whose frozen model encodes its data, once and for all; null
  for the data as they are. By default the stage before, or what the stage of `start` sees.
- `start`: name of the earlier stage with whose weights it begins, and whose `model` and `trainer`
  it takes over but for what it says itself: a sequence of tasks (`trainers.continual`).
- `judge`: name of the earlier stage whose reward model pays a policy, as the reward "judge".
- `backbone`: folder of a finished run, to be copied in the place of `model` and `trainer`.
- `dataset`, `run`, `mesh`: changes to the pipeline's own.

A model that is not to be trained, a control, has `trainer.epochs` 0.
"""

import contextlib
import functools
import json
import logging
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from grlu.errors import UserError
from trainers import continual, linked, processes, remote
from trainers.compiled import require_step
from trainers.config import STAGE_KEYS, to_json
from trainers.devices import placed
from trainers.experiment import SECTIONS
from trainers.features import config_of, open_experiment
from trainers.loop import Result, fit
from trainers.protocol import Experiment
from trainers.run_directory import RunDirectory, latest_metrics, logged_to, write_atomically
from trainers.schema import INHERITED, LINKS, factory_of, schema, section_of, unknown, validate
from trainers.values import plain

_log = logging.getLogger("grlu")
_SHARED = ("dataset", "run", "mesh")
_COMMON = ("seed", *_SHARED, "stages")
_KEYS = ("name", *STAGE_KEYS, *_SHARED, "model", "trainer")


def complete(config: Mapping[str, Any]) -> ConfigDict:
    """A validated pipeline, with what stages take over from others written out.

    Raises:
        UserError: naming the stage and the key that is wrong.
    """
    given = plain(config)
    for where in given:
        if where not in (*_COMMON, INHERITED):
            raise unknown(
                f"a pipeline has no section {where!r} but in its stages (stages.NAME.{where})",
                where,
                _COMMON,
            )
    for where in _SHARED:
        section_of(given, where)
    stages: dict[str, dict[str, Any]] = {}
    if not isinstance(given["stages"], tuple) or not given["stages"]:
        raise UserError("stages must be a list of stages, each with a name")
    for entry in given["stages"]:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]*", name) or name in stages:
            raise UserError(f"stages must each have a name of their own, of letters, got {name!r}")
        with _named(name):
            stages[name] = _completed(given, entry, stages)
    if "dataset" in given.pop(INHERITED, {}):
        known = schema(SECTIONS["dataset"](given["dataset"]["name"]))
        kept = {k: v for k, v in given["dataset"].items() if k in known or k == "name"}
        given["dataset"] = kept
    return ConfigDict(given | {"stages": tuple(stages.values())}, type_safe=False)


def ordinary(pipeline: Mapping[str, Any], stage: Mapping[str, Any]) -> ConfigDict | None:
    """The config of a stage's own run; None if the run is copied from elsewhere."""
    if stage["backbone"] is not None:
        return None
    own = {k: stage[k] for k in ("model", "trainer") if k in stage}
    own[INHERITED] = pipeline.get(INHERITED, {}) | stage.get(INHERITED, {})
    for where in _SHARED:
        common, change = section_of(pipeline, where), section_of(stage, where)
        another = change.get("name", common.get("name")) != common.get("name")
        own[where] = change if another else common | change
    links = {k: f"../{stage[k]}" for k in LINKS if stage[k] is not None}
    return validate({"seed": pipeline.get("seed", 0), **own, **links}, SECTIONS)


def check(pipeline: ConfigDict) -> list[Experiment]:
    """Builds every stage once, on features that are zeros, so that no mistake waits for its turn.

    Returns:
        The stages' experiments.

    Raises:
        UserError: naming the stage that doesn't fit.
    """
    built = []
    with tempfile.TemporaryDirectory() as scratch, _without(f"{scratch}/"):
        run = RunDirectory(pathlib.Path(scratch))
        for stage in plain(pipeline)["stages"]:
            with _named(stage["name"]):
                own = run.stage(stage["name"])
                _prepare(plain(pipeline), stage, run)
                experiment = open_experiment(config_of(own), own, computed=())
                placed(experiment.run.seeds, experiment.mesh)
                remote.require(experiment.run.wandb)
                require_step(experiment)
                built.append(experiment)
    return built


def fit_stages(
    pipeline: ConfigDict, run: RunDirectory, *, progress: bool, overrides: Sequence[str] = ()
) -> Result:
    """Trains the stages that are not finished, in their order; raises what `fit` raises.

    `overrides` change the stages' configs for this time.
    """
    given = plain(pipeline)
    steps = 0
    with logged_to(run.log):
        for number, stage in enumerate(given["stages"], 1):
            name, own = stage["name"], run.stage(stage["name"])
            title = f"stage {name} ({number} of {len(given['stages'])})"
            with _named(name):
                processes.by_first(functools.partial(_prepare, given, stage, run), title)
                config = config_of(own, overrides)
                if stage["backbone"] is not None:
                    _log.info("%s is the run %s", title, stage["backbone"])
                    continue
                steps = open_experiment(config, own, computed=()).steps
                if (own.checkpoints / str(steps)).is_dir():
                    _log.info("%s is finished", title)
                    continue
                _log.info("%s: training in %s", title, own.path)
                with logged_to(own.log):
                    fit(open_experiment(config, own), own, progress=progress)
        summary = {name: latest_metrics(run.stage(name).metrics) for name in _names(given)}
        last = run.stage(_names(given)[-1])
        text = json.dumps({"stages": summary, **continued(pipeline, run)}, indent=2)
        if processes.first():
            write_atomically(run.summary, text + "\n")
    return Result(run.path, steps, latest_metrics(last.metrics))


def keep(pipeline: ConfigDict, run: RunDirectory) -> None:
    """Copy into the folder of a pipeline what its stages need of other runs and files."""
    given = plain(pipeline)
    for stage in given["stages"]:
        if stage["backbone"] is not None:
            _prepare(given, stage, run)
        else:  # Its links are to earlier stages.
            linked.keep({"trainer": stage["trainer"]}, run.stage(stage["name"]))


def last_stage(pipeline: ConfigDict, run: RunDirectory) -> RunDirectory:
    """The run of the last stage, through which all that comes before it is evaluated.

    Raises:
        UserError: if the pipeline hasn't come to it.
    """
    last = run.stage(_names(plain(pipeline))[-1])
    if not last.config.is_file():
        raise UserError(f"{run.path} is not finished; 'grlu resume {run.path}' trains it")
    return last


def continued(pipeline: ConfigDict, run: RunDirectory) -> dict[str, Any]:
    """What is said of a sequence of tasks beside its last stage's metrics, as "continual"."""
    found = continual.measured(run, plain(pipeline)["stages"])
    return {"continual": found} if found else {}


def _completed(
    pipeline: dict[str, Any], entry: dict[str, Any], before: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """A stage with all its keys, its model and trainer complete."""
    for key in entry:
        if key not in (*_KEYS, INHERITED):
            raise unknown(f"there is no key {key!r}", key, _KEYS)
    start = _earlier("start", entry.get("start"), before)
    backbone = entry.get("backbone")
    if backbone is not None and (start or "model" in entry or "trainer" in entry):
        raise UserError("a backbone takes the place of model, trainer and start: give it alone")
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
        another = section.get("name", taken.get("name")) != taken.get("name")
        if not another:  # With another objective, what is of the one before is not taken over.
            known = schema(factory_of(SECTIONS[where], taken | section, where))
            taken = {k: v for k, v in taken.items() if k == "name" or k in known}
        stage[where] = section if another else taken | section
    config = plain(ordinary(pipeline, stage | {INHERITED: entry.get(INHERITED, {})}))
    stage |= {where: config[where] for where in ("model", "trainer")}
    if "dataset" in stage:
        stage["dataset"] = {
            k: v for k, v in stage["dataset"].items() if k in config["dataset"] or k == "name"
        }
    return stage


def _taken_over(stage: Mapping[str, Any], where: str, section: Mapping[str, Any]) -> Any:
    """The model or trainer of a stage from which another starts, which itself says `section`."""
    if stage["backbone"] is None:
        return stage[where]
    run = RunDirectory(pathlib.Path(stage["backbone"]))
    # A finished pipeline says all itself, and outlives the run that it was built on.
    if "name" in section and not run.config.is_file():
        return {}
    return plain(config_of(run)[where])


def _earlier(key: str, name: Any, before: Mapping[str, Any]) -> str | None:
    if name is not None and name not in before:
        raise unknown(f"{key} must name an earlier stage, and {name!r} is none", name, before)
    return name


def _prepare(pipeline: Mapping[str, Any], stage: Mapping[str, Any], run: RunDirectory) -> None:
    """Makes the folder of a stage, with its config, where it isn't there yet."""
    own = run.stage(stage["name"])
    if not own.config.is_file():
        own.path.mkdir(parents=True, exist_ok=True)
        config = ordinary(pipeline, stage)
        if config is None:
            config = _copied(RunDirectory(pathlib.Path(stage["backbone"])), own)
        write_atomically(own.config, to_json(config))


def _copied(source: RunDirectory, own: RunDirectory) -> ConfigDict:
    """Copy a run's metrics, checkpoints and links, and return its config."""
    config = config_of(source)
    linked.copy_checkpoints(source, own)
    if source.metrics.is_file():
        shutil.copy(source.metrics, own.metrics)
    linked.keep(config, own, source)
    return linked.detached(config, source)


def _names(pipeline: Mapping[str, Any]) -> list[str]:
    return [stage["name"] for stage in pipeline["stages"]]


@contextlib.contextmanager
def _without(text: str) -> Iterator[None]:
    """Leaves a part out of what is said of a mistake."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace(text, "")) from error


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"stage {name!r}: {error}") from error

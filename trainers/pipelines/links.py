"""Links: the other runs that a config names, and the copies that a run keeps of them.

Links are paths relative to the run's folder: `features` names the run whose trained model encodes
the data, `start` the run whose weights this one starts from, `judge` the run of a reward model. A
pipeline writes these links between its stages. `trainer.reference` may name the run of a policy's
reference.

A run keeps copies of what it needs after its first checkpoint. `RUN/linked/features` and
`RUN/linked/judge` are runs with their checkpoints. `RUN/linked/reference` is a config without
weights, which are in the run's own checkpoints. `RUN/linked/files` holds the Python files of
rewards. Data sets are not copied. Older runs without copies follow the links.
"""

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from grlu.errors import UserError
from trainers.config.load import load_config, to_json
from trainers.config.paths import copy_of, functions, kept
from trainers.config.schema import LINKS, validate
from trainers.config.values import plain
from trainers.loop.run_dir import RunDirectory, write_atomically
from trainers.policies.reference import NAMED
from trainers.registry import SECTIONS


def config_of(run: RunDirectory, overrides: Sequence[str] = ()) -> ConfigDict:
    """Return the complete config in a run's folder, with `overrides`.

    If a user's file no longer exists, the run's copy replaces its path.
    """
    config = load_config(RunDirectory.open(run.path).config, overrides)
    if "stages" in config:
        names = ", ".join(str(run.stage(stage["name"]).path) for stage in config.stages)
        raise UserError(f"{run.path} is a pipeline: name one of its stages, {names}")
    return kept(validate(config, SECTIONS), run.files)


def linked_run(
    run: RunDirectory | None, kind: str, link: str, *, copied: bool = True
) -> RunDirectory:
    """Return the run that a config links to, or the linking run's own copy of it.

    Args:
        run: the run that links, or None before it is made.
        kind: "features", "start", "judge" or "reference".
        link: path of the other run, relative to the folder of `run`.
        copied: accept a copy, which has no weights if it is a reference.
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


def keep(
    config: Mapping[str, Any],
    run: RunDirectory,
    source: RunDirectory | None = None,
    *,
    judge: bool = True,
) -> None:
    """Copy the runs and files that a config names into the folder of a run.

    Links are relative to the folder of the config's run, `source`, or absolute if it is None.
    """
    for kind in ("features", "judge") if judge else ("features",):
        if kind in config:
            copy_run(linked_run(source, kind, config[kind]), run.linked(kind))
    if link := reference_link(config):
        copy_run(linked_run(source, "reference", link), run.linked("reference"), weights=False)
    for file in functions(config):
        copy = copy_of(file, run.files)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)


def copy_run(
    source: RunDirectory, copy: RunDirectory, *, weights: bool = True, judge: bool = False
) -> None:
    """Copy a run's config with absolute links, what it links to, and its checkpoints if `weights`.

    Only training and evaluation need a judge.
    """
    config = config_of(source)
    keep(config, copy, source, judge=judge)
    if weights:
        if not source.trained:
            raise UserError(
                f"{source.path} has no checkpoint yet; 'grlu resume {source.path}' trains it"
            )
        # Copy all: only Orbax can find the best readable one, and it needs all processes, but the
        # first process copies alone.
        unfinished = shutil.ignore_patterns("*.orbax-checkpoint-tmp*")
        shutil.copytree(source.checkpoints, copy.checkpoints, ignore=unfinished, dirs_exist_ok=True)
    copy.path.mkdir(parents=True, exist_ok=True)
    links = {k: str(pathlib.Path(source.path, config[k]).resolve()) for k in LINKS if k in config}
    detached = ConfigDict(plain(config) | links, type_safe=False)
    write_atomically(copy.config, to_json(detached))

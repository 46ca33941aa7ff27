"""Copies of the runs and files that a run needs later, inside its folder.

`RUN/linked/features` and `RUN/linked/judge` are runs with their checkpoints. `RUN/linked/reference`
is a config without weights, which are in the run's own checkpoints. `RUN/linked/files` holds the
Python files of rewards. Data sets are not copied.
"""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from grlu.errors import UserError
from trainers.config.load import to_json
from trainers.config.paths import copy_of, functions
from trainers.config.schema import LINKS
from trainers.config.values import plain
from trainers.loop.run_dir import RunDirectory, write_atomically
from trainers.pipelines.links import config_of, linked_run, reference_link


def keep(
    config: Mapping[str, Any],
    run: RunDirectory,
    source: RunDirectory | None = None,
    *,
    judge: bool = True,
) -> None:
    """Copy the runs and files that a config names into the folder of a run.

    Args:
        config: the config.
        run: the run.
        source: run of the config, whose folder its links are relative to; None if absolute.
        judge: also copy the judge.
    """
    if "features" in config:
        _copy(linked_run(source, "features", config["features"]), run.linked("features"))
    if judge and "judge" in config:
        _copy(linked_run(source, "judge", config["judge"]), run.linked("judge"))
    if link := reference_link(config):
        _copy(linked_run(source, "reference", link), run.linked("reference"), weights=False)
    for file in functions(config):
        copy = copy_of(file, run.files)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)


def detached(config: ConfigDict, source: RunDirectory) -> ConfigDict:
    """Return the config of a run with absolute links."""
    links = {k: str(pathlib.Path(source.path, config[k]).resolve()) for k in LINKS if k in config}
    return ConfigDict(plain(config) | links, type_safe=False)


def copy_checkpoints(source: RunDirectory, copy: RunDirectory) -> None:
    """Copy all checkpoints of a run.

    Only Orbax can tell which is the best readable one, and it needs all processes, while the first
    copies alone.

    Raises:
        UserError: if there are none.
    """
    if not source.trained:
        raise UserError(
            f"{source.path} has no checkpoint yet; 'grlu resume {source.path}' trains it"
        )
    unfinished = shutil.ignore_patterns("*.orbax-checkpoint-tmp*")
    shutil.copytree(source.checkpoints, copy.checkpoints, ignore=unfinished, dirs_exist_ok=True)


def _copy(source: RunDirectory, copy: RunDirectory, *, weights: bool = True) -> None:
    """Copy a run's config, and its checkpoints if its `weights` are needed."""
    config = config_of(source)
    # Only training and evaluation need a judge, and a copy does neither.
    keep(config, copy, source, judge=False)
    if weights:
        copy_checkpoints(source, copy)
    copy.path.mkdir(parents=True, exist_ok=True)
    write_atomically(copy.config, to_json(detached(config, source)))

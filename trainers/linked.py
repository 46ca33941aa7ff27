"""Copies, inside a run's folder, of the runs and files that it needs later, so it outlives them.

`RUN/linked/features` and `RUN/linked/judge` are runs with their checkpoints. `RUN/linked/reference`
is a config alone: it says what the weights in the run's own checkpoints belong to.
`RUN/linked/files` holds the Python files of rewards. Data sets are not copied: they stay where the
config says.
"""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from grlu.errors import UserError
from trainers.config import to_json
from trainers.features import config_of, linked_run, reference_link
from trainers.paths import copy_of, functions
from trainers.run_directory import RunDirectory, write_atomically
from trainers.schema import LINKS
from trainers.values import plain


def keep(
    config: Mapping[str, Any],
    run: RunDirectory,
    source: RunDirectory | None = None,
    *,
    judge: bool = True,
) -> None:
    """Copy into the folder of a run what it needs of the runs and files that its config names.

    Args:
        config: the config.
        run: the run.
        source: the run that the config is from, to whose folder its links are relative; None if
            they are absolute.
        judge: whether the judge is needed as well.
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
    """Return the config of a run with links that hold from any folder."""
    links = {k: str(pathlib.Path(source.path, config[k]).resolve()) for k in LINKS if k in config}
    return ConfigDict(plain(config) | links, type_safe=False)


def copy_checkpoints(source: RunDirectory, copy: RunDirectory) -> None:
    """Copy the checkpoints of a run.

    They are all copied: only Orbax can say which is the best that can be read, and it asks all
    processes, of which the first copies alone.

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
    # A judge is followed in training and evaluation alone, which a copy is not made for.
    keep(config, copy, source, judge=False)
    if weights:
        copy_checkpoints(source, copy)
    copy.path.mkdir(parents=True, exist_ok=True)
    write_atomically(copy.config, to_json(detached(config, source)))

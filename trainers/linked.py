"""Copies, inside a run's folder, of the runs and files that it needs later, so it outlives them.

`RUN/linked/features` and `RUN/linked/judge` are runs with one checkpoint. `RUN/linked/reference` is
a config alone: it says what the weights in the run's own checkpoints belong to. `RUN/linked/files`
holds the Python files of rewards. Data sets are not copied: they stay where the config says.
"""

import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from trainers.config import to_json
from trainers.features import config_of, linked_run, reference_link, restored
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
        features = linked_run(source, "features", config["features"])
        _copy(features, run.linked("features"), best=True)
    if judge and "judge" in config:
        _copy(linked_run(source, "judge", config["judge"]), run.linked("judge"), best=False)
    if link := reference_link(config):
        _copy(linked_run(source, "reference", link), run.linked("reference"), best=None)
    for file in functions(config):
        copy = copy_of(file, run.files)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)


def detached(config: ConfigDict, source: RunDirectory) -> ConfigDict:
    """Return the config of a run with links that hold from any folder."""
    links = {k: str(pathlib.Path(source.path, config[k]).resolve()) for k in LINKS if k in config}
    return ConfigDict(plain(config) | links, type_safe=False)


def _copy(source: RunDirectory, copy: RunDirectory, *, best: bool | None) -> None:
    """Copy a run's config and its best or newest checkpoint, or no checkpoint if `best` is None."""
    config = config_of(source)
    # A judge is followed in training and evaluation alone, which a copy is not made for.
    keep(config, copy, source, judge=False)
    if best is not None:
        step = str(restored(source, best=best).step)
        shutil.copytree(source.checkpoints / step, copy.checkpoints / step)
    copy.path.mkdir(parents=True, exist_ok=True)
    write_atomically(copy.config, to_json(detached(config, source)))

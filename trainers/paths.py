"""Paths in a config: made absolute, so that a run is the same from any folder, and found again."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.local import local
from trainers.schema import LINKS
from trainers.values import plain

_PATHS = ("backbone", "bpe", "data_dir", "init_from", "reference")
_REWARDS = ("rewards", "utility")
_DATA = re.compile(r"((?:text|folder|preferences):)(.+)")
_FUNCTION = re.compile(r"()(.+\.py)(?=:\w+$)")


def absolute(config: ConfigDict) -> ConfigDict:
    """Return a config with the absolute paths of all that is there and of each run it links to.

    Raises:
        UserError: if it names a remote path.
    """
    given = plain(config)
    links = {k: str(local(given[k], f"{k}:").resolve()) for k in LINKS if k in given}
    return ConfigDict(_walked(given) | links, type_safe=False)


def functions(config: Mapping[str, Any]) -> list[Path]:
    """Return the Python files that a config takes rewards from."""
    trainer = config["trainer"]
    named = [name for key in _REWARDS for name in trainer.get(key) or ()]
    return [Path(found[2]) for name in named if (found := _FUNCTION.match(name))]


def copy_of(file: Path, folder: Path) -> Path:
    """Return the path of a file's copy in a folder of copies."""
    return folder / file.relative_to(file.anchor)


def kept(config: ConfigDict, folder: Path) -> ConfigDict:
    """Return a config that names the copies in `folder` of the Python files that are gone."""

    def found(match: re.Match) -> str:
        file = Path(match[2])
        copy = copy_of(file, folder)
        return str(file if file.is_file() or not copy.is_file() else copy)

    trainer = plain(config.trainer)
    changed = {
        key: tuple(_FUNCTION.sub(found, name) for name in trainer[key])
        for key in _REWARDS
        if trainer.get(key)
    }
    return ConfigDict(plain(config) | {"trainer": trainer | changed}, type_safe=False)


def _walked(section: dict[str, Any]) -> dict[str, Any]:
    return {key: _named(key, value) for key, value in section.items()}


def _named(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return _walked(value)
    if isinstance(value, tuple):
        return tuple(_named(key, entry) for entry in value)
    if not isinstance(value, str):
        return value
    if key in _PATHS:
        return _whole(key, value)
    if key in ("name", "like"):
        return _DATA.sub(lambda found: found[1] + _whole(key, found[2]), value)
    if key in _REWARDS:
        return _FUNCTION.sub(lambda found: _whole(key, found[2]), value)
    return value


def _whole(key: str, path: str) -> str:
    found = local(path, f"{key}:")
    return str(found.resolve()) if found.exists() else path

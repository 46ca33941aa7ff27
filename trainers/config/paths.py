"""Paths in a config: made absolute, so that any working folder works, or replaced by copies."""

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from input_pipeline.storage.local import local
from trainers.config.schema import LINKS
from trainers.config.values import plain

_REWARDS = ("rewards", "utility")
_FUNCTION = re.compile(r"(?P<path>.+\.py)(?=:\w+$)")
# Config key → pattern of the path in its value.
_PATHS: dict[str, Any] = {
    **dict.fromkeys(("backbone", "bpe", "data_dir", "init_from", "reference"), r"(?P<path>.+)"),
    **dict.fromkeys(("name", "like"), r"(?:text|folder|preferences):(?P<path>.+)"),
    **dict.fromkeys(_REWARDS, _FUNCTION),
}


def absolute(config: ConfigDict) -> ConfigDict:
    """Return a config with absolute paths of all existing files and linked runs, none remote."""

    def resolved(key: str, match: re.Match) -> str:
        path = local(match["path"], f"{key}:")
        found = str(path.resolve()) if path.exists() else match["path"]
        return match[0].removesuffix(match["path"]) + found

    given = plain(config)
    links = {k: str(local(given[k], f"{k}:").resolve()) for k in LINKS if k in given}
    return ConfigDict(_changed(given, resolved) | links, type_safe=False)


def functions(config: Mapping[str, Any]) -> list[Path]:
    """Return the Python files of a config's rewards."""
    trainer = config["trainer"]
    names = [name for key in _REWARDS for name in trainer.get(key) or ()]
    return [Path(match["path"]) for name in names if (match := _FUNCTION.match(name))]


def copy_of(file: Path, folder: Path) -> Path:
    """Return the path of a file's copy in a folder of copies."""
    return folder / file.relative_to(file.anchor)


def kept(config: ConfigDict, folder: Path) -> ConfigDict:
    """Return a config in which copies in `folder` replace Python files that no longer exist."""

    def existing(key: str, match: re.Match) -> str:
        file = Path(match["path"])
        copy = copy_of(file, folder)
        return str(copy) if key in _REWARDS and not file.is_file() and copy.is_file() else match[0]

    return ConfigDict(_changed(plain(config), existing), type_safe=False)


def _changed(value: Any, change: Callable[[str, re.Match], str], key: str = "") -> Any:
    """Return a value of a config with all paths replaced by `change(key, match)`."""
    if isinstance(value, dict):
        return {k: _changed(v, change, k) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_changed(entry, change, key) for entry in value)
    if not isinstance(value, str) or key not in _PATHS:
        return value
    return re.sub(_PATHS[key], functools.partial(change, key), value)

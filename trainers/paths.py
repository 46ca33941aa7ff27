"""What a config names on the disk, by absolute paths: a run then is the same from any folder."""

import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from trainers.schema import LINKS
from trainers.values import plain

_PATHS = ("backbone", "bpe", "data_dir", "init_from", "reference")
_DATA = re.compile(r"((?:text|folder|preferences):)(.+)")
_FUNCTION = re.compile(r"()(.+\.py)(?=:\w+$)")


def absolute(config: ConfigDict) -> ConfigDict:
    """A config in which what is there, and each run it links to, is named by its whole path."""
    given = plain(config)
    links = {k: str(Path(given[k]).expanduser().resolve()) for k in LINKS if k in given}
    return ConfigDict(_walked(given) | links, type_safe=False)


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
        return _whole(value)
    if key in ("name", "like"):
        return _DATA.sub(lambda found: found[1] + _whole(found[2]), value)
    if key in ("rewards", "utility"):
        return _FUNCTION.sub(lambda found: _whole(found[2]), value)
    return value


def _whole(path: str) -> str:
    found = Path(path).expanduser()
    return str(found.resolve()) if found.exists() else path

"""YAML files with the sections `dataset`, `model` and `train`."""

import logging
from collections.abc import Mapping
from typing import Any

from grlu.errors import UserError

_MOVED = {
    ("model", "type"): ("model", "name"),
    ("dataset", "batch_size"): ("trainer", "batch_size"),
}
_IGNORED = {
    "dataset": ("num_workers", "pin_memory", "shuffle"),
    "trainer": ("device", "save_dir"),
}
_log = logging.getLogger("grlu")


def translate(layout: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sections of our config; `layout` may use our own names as well.

    `train` becomes `trainer`, `model.type` becomes `model.name`, and `dataset.batch_size` becomes
    `trainer.batch_size`. Keys that have no effect here are dropped with a warning.

    Raises:
        UserError: if a key is given under both names.
    """
    sections: dict[str, Any] = {}
    for where, section in layout.items():
        name = "trainer" if where == "train" else where
        if name in sections:
            raise UserError("train and trainer are the same section: give one of them")
        if name in ("seed", "stages"):
            sections[name] = section
            continue
        if not isinstance(section, Mapping | None):
            raise UserError(f"{name} must be a section of keys and values, got {section!r}")
        sections[name] = dict(section or {})
    for (where, key), (new_where, new_key) in _MOVED.items():
        if key in sections.get(where, {}):
            target = sections.setdefault(new_where, {})
            if new_key in target:
                raise UserError(f"{where}.{key} and {new_where}.{new_key} are the same: give one")
            target[new_key] = sections[where].pop(key)
    for where, keys in _IGNORED.items():
        for key in keys:
            if key in sections.get(where, {}):
                del sections[where][key]
                _log.warning("ignored: %s.%s is not supported", where, key)
    return sections

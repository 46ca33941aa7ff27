"""Meanings of config keys, read from docstrings."""

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from trainers.config.schema import LINKS, Sections, factory_of
from trainers.config.values import plain

_SECTION = re.compile(r"^(?:Args|Attributes):\n((?: .*\n?|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def meanings(factory: Any) -> dict[str, str]:
    """Return key → meaning from the Args and Attributes of a factory's docstring.

    For a class, include those of its bases and of its `rule_class`.
    """
    classes = inspect.getmro(factory) if inspect.isclass(factory) else (factory,)
    found: dict[str, str] = {}
    for each in (*classes, getattr(factory, "rule_class", None)):
        for text in (each.__doc__, getattr(each, "__init__", each).__doc__) if each else ():
            found = _entries(text or "") | found
    return found


def explained(
    config: Mapping[str, Any], sections: Sections, common: Mapping[str, Any] = {}
) -> Iterator[str]:
    """Yield the lines of a complete config or pipeline as YAML, each key with its meaning.

    `common` holds the pipeline's sections, which a stage may change.
    """
    for key, value in plain(config).items():
        if key == "stages":
            yield "stages:"
            for stage in value:
                yield f"- name: {stage['name']}"
                rest = {k: v for k, v in stage.items() if k != "name"}
                yield from (f"  {line}" for line in explained(rest, sections, plain(config)))
        elif key in sections and isinstance(value, dict):
            yield f"{key}:"
            changed = common.get(key, {}) | value
            known = meanings(factory_of(sections[key], changed, key)) if value else {}
            yield from (f"  {line}" for line in _lines(value, known))
        else:
            yield from _lines({key: value}, dict.fromkeys(LINKS, "run that this one builds on"))


def _lines(values: Mapping[str, Any], known: Mapping[str, str]) -> Iterator[str]:
    for key, value in values.items():
        text = yaml.safe_dump(value, default_flow_style=True, width=1000)
        text = f"{key}: {text.removesuffix('...' + chr(10)).strip()}"
        yield f"{text:34}  # {known[key]}" if known.get(key) else text


def _entries(docstring: str) -> dict[str, str]:
    sections = _SECTION.findall(inspect.cleandoc(docstring))
    return {name: " ".join(text.split()) for name, text in _ENTRY.findall("\n".join(sections))}

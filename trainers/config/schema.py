"""Schema of a config: the keys of a section are the keyword parameters of what it builds.

Names, types and defaults are read from the signature, so there is no second list of them.
"""

import dataclasses
import difflib
import inspect
import logging
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from grlu.errors import UserError
from trainers.config.values import convert, describe, plain

CHOOSING = ("name", "objective")
"""Keys of a section that choose what it builds, and so its other keys."""

INHERITED = "inherited"
"""Config key: section → keys written for a replaced choice, dropped if the new one lacks them."""

LINKS = ("features", "start", "judge")
"""Config keys with paths, relative to the run's folder, of runs that this one builds on."""

Factory = Callable[..., Any]
Sections = Mapping[str, Mapping[str, Factory] | type | Callable[[str | None], Factory]]
"""Section → what it builds: a class, a dict by name, or a function of the name."""

_log = logging.getLogger("grlu")
_EMPTY = inspect.Parameter.empty


class Key(NamedTuple):
    type: Any
    default: Any
    required: bool


def schema(factory: Factory, exclude: Collection[str] = ()) -> dict[str, Key]:
    """Return the keys that `factory` accepts from a config, except `rngs` and `exclude`.

    These are the fields of a dataclass, or the parameters of a function or `__init__` that are
    keyword-only or have a default.
    """
    if dataclasses.is_dataclass(factory):
        hints = typing.get_type_hints(factory)
        defaults = {
            field.name: field.default
            if field.default_factory is dataclasses.MISSING
            else field.default_factory()
            for field in dataclasses.fields(factory)
            if field.init
        }
    else:
        function = factory.__init__ if inspect.isclass(factory) else factory
        hints = typing.get_type_hints(function)
        kinds = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        defaults = {
            name: dataclasses.MISSING if parameter.default is _EMPTY else parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.kind in kinds[: 1 if parameter.default is _EMPTY else 2]
        }
    return {
        name: Key(hints.get(name, Any), default, default is dataclasses.MISSING)
        for name, default in defaults.items()
        if name != "rngs" and name not in exclude
    }


def of_section(factory: Factory, section: Mapping[str, Any]) -> Factory:
    """Return `factory` with the keys of its section's choice.

    A factory with such keys has a class method `of_section`, which returns a class with these keys;
    its `others` maps "KEY=CHOICE" to the keys of the other choices.
    """
    return factory.of_section(section) if hasattr(factory, "of_section") else factory


def check(
    section: Mapping[str, Any], factory: Factory, where: str, exclude: Collection[str] = ()
) -> dict[str, Any]:
    """Convert the values of a section, and fill in the defaults of `factory`."""
    keys = schema(factory, exclude)
    for name in section:
        if name not in keys:
            message = f"{where} has no key {name!r}"
            others = getattr(factory, "others", {}).items()
            if choices := [f"{where}.{choice}" for choice, theirs in others if name in theirs]:
                raise UserError(f"{message}: it is one of {' or '.join(choices)}")
            raise unknown(message, name, keys)
    checked = {}
    for name, key in keys.items():
        if name not in section:
            if key.required:
                raise UserError(f"{where}.{name} is missing: it must be {describe(key.type)}")
            checked[name] = key.default
            continue
        try:
            checked[name] = convert(section[name], key.type)
        except ValueError as error:
            value, wanted = section[name], describe(key.type)
            message = f"{where}.{name} must be {wanted}, got {value!r}"
            if "a string" in wanted and isinstance(value, int | float):
                message += f"; as text it is written '{where}.{name}=\"{value}\"'"
            raise UserError(message) from error
    return checked


def build(
    factory: Factory, section: Mapping[str, Any], where: str, *args: Any, **given: Any
) -> Any:
    """Call `factory(*args, **section, **given)`, with the section's `name` if it is a parameter.

    Raises:
        UserError: if the section does not fit, or `factory` raises TypeError or ValueError.
    """
    factory = of_section(factory, section)
    parameters = inspect.signature(factory).parameters
    keywords = {k: v for k, v in plain(section).items() if k in parameters or k != "name"}
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        keywords = check(keywords, factory, where, exclude=given)
    try:
        return factory(*args, **keywords, **given)
    except (TypeError, ValueError) as error:
        message = str(error)
        raise UserError(message if message.startswith(where) else f"{where}: {message}") from error


def validate(config: Mapping[str, Any], sections: Sections) -> ConfigDict:
    """Return a complete config: every section checked, every default filled in.

    Keys of the config file that belong to a replaced model, trainer, objective or data set are
    dropped with a warning if the new one lacks them. So are keys of other objectives at their
    defaults, which old saved configs have.

    Raises:
        UserError: for an unknown section, name or key, or a value of the wrong type.
    """
    given = plain(config)
    inherited = given.pop(INHERITED, {})
    seed = given.pop("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    complete: dict[str, Any] = {"seed": seed}
    for link in LINKS:
        if (path := given.pop(link, None)) is not None:
            if not isinstance(path, str):
                raise UserError(f"{link} must be the path of another run, got {path!r}")
            complete[link] = path
    for where in given:
        if where not in sections:
            raise unknown(f"the config has no section {where!r}", where, [*sections, "seed"])
    for where, choice in sections.items():
        section = section_of(given, where)
        factory = factory_of(choice, section, where)
        own = dict(section)
        named = {} if inspect.isclass(choice) or "name" not in own else {"name": own.pop("name")}
        keys, others = schema(factory), getattr(factory, "others", {}).values()
        dropped = {
            k
            for k in own.keys() - keys
            if k in inherited.get(where, ())
            or any(k in theirs and own[k] == theirs[k].default for theirs in others)
        }
        if dropped:
            what = " with ".join(repr(section[k]) for k in CHOOSING if k in {*section} - dropped)
            _log.warning("%s %s has no %s: dropped", where, what, ", ".join(sorted(dropped)))
        own = {k: v for k, v in own.items() if k not in dropped}
        complete[where] = named | check(own, factory, where)
    return ConfigDict(complete, type_safe=False)


def section_of(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a section of a plain config, empty if missing."""
    section = config.get(where, {})
    if not isinstance(section, dict):
        raise UserError(f"{where} must be a section of keys and values, got {section!r}")
    return section


def factory_of(choice: Any, section: Mapping[str, Any], where: str) -> Factory:
    """Return the factory of a section, chosen by its entry in `Sections`."""
    name = section.get("name")
    if inspect.isclass(choice):
        return choice
    if not isinstance(choice, Mapping):
        try:
            return choice(name)
        except KeyError as error:
            raise UserError(f"there is no {where} {name!r}") from error
    if name is None:
        raise UserError(f"{where}.name is missing: it must be one of {', '.join(choice)}")
    if name not in choice:
        raise unknown(f"there is no {where} {name!r}", name, choice)
    return of_section(choice[name], section)


def unknown(what: str, name: Any, known: Iterable[str]) -> UserError:
    """Return the error for an unknown name, with the nearest known one."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
    return UserError(f"{what}; {hint}")

"""Loading of configs, and overrides from the command line.

A config has the sections `dataset`, `model`, `trainer`, `run` and `mesh`, and a `seed`. The keys of
a section are the parameters of the class that it builds (`trainers/config/schema.py`). A pipeline
has `stages` instead of `model` and `trainer` (`trainers/pipelines/stages.py`).
"""

import ast
import json
import os
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from ml_collections import ConfigDict

import configs
from configs import legacy
from configs.legacy.published import from_published
from grlu import NodePerturbation
from grlu.errors import UserError
from input_pipeline.storage.local import local
from trainers.config.schema import CHOOSING, INHERITED, LINKS, build, section_of, unknown
from trainers.config.values import plain

_SECTIONS = ("dataset", "model", "trainer", "run", "mesh")
# Additional keys of a stage, which name other stages or runs.
STAGE_KEYS = (*LINKS, "backbone")

Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | ConfigDict


def load_config(source: Source, overrides: Sequence[str] = ()) -> ConfigDict:
    """Load a config and apply overrides, without validation or defaults.

    Args:
        source: name of a file in `configs/`, or `FAMILY:MEMBER`; path of a `.py` file with
            `get_config()`, of a `.json` file (a saved config, or the original project's), or of a
            `.yaml` file; a ConfigDict or a dict.
        overrides: `section.key=value`, with a YAML value or a Python tuple; for a stage of a
            pipeline, `stages.NAME.section.key=value`.

    Raises:
        UserError: on a file that cannot be read, with its line, or a wrong override.
    """
    config = plain(_read(*_located(source)) if isinstance(source, str | os.PathLike) else source)
    if "training" in config:
        config = from_published(config, build, NodePerturbation.published)
    for where in config:
        if where not in (*_SECTIONS, "seed", "stages", *LINKS, INHERITED):
            raise unknown(f"the config has no section {where!r}", where, [*_SECTIONS, "seed"])
    alone = ("seed",) if "stages" in config else ("seed", *LINKS)
    return ConfigDict(_override(config, overrides, alone), type_safe=False)


def source_name(source: Source) -> str:
    """Return the name of a config or of its file, for the name of a run."""
    if not isinstance(source, str | os.PathLike):
        return "run"
    path = Path(source)
    return path.stem if path.suffix in _PARSERS else re.sub(r"[^\w.]+", "_", str(source))


def to_json(config: ConfigDict) -> str:
    """Return a config as JSON, which `load_config` reads back from a file."""
    try:
        return json.dumps(config.to_dict(), indent=2) + "\n"
    except TypeError as error:
        raise UserError(f"the config can't be saved: {error}") from error


def _located(source: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Return the file of a config, and the member of a family that it selects."""
    path = Path(source)
    if path.suffix in _PARSERS:
        local(path, "the config")
        return path, None
    entries, named = configs.entries(), str(source)
    name, colon, member = named.partition(":")
    for entry in entries.values():
        if named in entry.aliases:
            return entry.path, entry.aliases[named]
    if name in entries and (not colon or member in entries[name].members):
        return entries[name].path, member or None
    message = f"there is no config {named!r}, nor is it a path that ends in {', '.join(_PARSERS)}"
    raise unknown(message, named, configs.names())


def _read(path: Path, member: str | None) -> Mapping[str, Any]:
    """Return the sections in a file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the config {path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the config {path} can't be read: it is not text ({error})") from error
    if not text.strip():
        raise UserError(f"the config {path} is empty")
    config = _PARSERS[path.suffix](text, path, *([] if member is None else [member]))
    if not isinstance(config, Mapping | ConfigDict):
        raise UserError(f"the config {path} must hold sections of keys and values, not {config!r}")
    if path.suffix in (".yaml", ".yml"):
        return legacy.from_vae(config) if legacy.is_vae(config) else legacy.from_yaml(config)
    return config


def _python(text: str, path: Path, *member: str) -> Any:
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(text, str(path), "exec"), namespace)
        if "get_config" not in namespace:
            raise UserError(f"the config {path} defines no get_config()")
        return namespace["get_config"](*member)
    except UserError:
        raise
    except SyntaxError as error:
        where = f"{error.filename or path}, line {error.lineno}"
        raise UserError(f"{where}: not valid Python: {error.msg}") from error
    except Exception as error:  # any error of the user's file
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f", line {frame.lineno}" for frame in frames if frame.filename == str(path)]
        error_text = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}{lines[-1] if lines else ''}: {error_text}") from error


def _json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error


def _yaml(text: str, path: Path) -> Any:
    try:
        return yaml.load(text, _Yaml)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from error


_PARSERS: dict[str, Callable[..., Any]] = {
    ".py": _python,
    ".json": _json,
    ".yaml": _yaml,
    ".yml": _yaml,
}


class _Yaml(yaml.SafeLoader):
    """YAML that also reads 1e-3 as a number, like YAML 1.2, and None as null."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
_Yaml.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"None$"), ["N"])


def _override(
    config: dict[str, Any], overrides: Sequence[str], alone: Sequence[str] = ("seed",)
) -> dict[str, Any]:
    """Apply overrides, and record the keys that belong to a replaced choice as inherited.

    `alone` lists the keys that are not sections.
    """
    changes: dict[str, dict[str, Any]] = {}
    of_stages: dict[str, list[str]] = {}
    changed: dict[str, Any] = {}
    known = [*_SECTIONS, *alone, *(["stages"] if "stages" in config else [])]
    for override in overrides:
        path, equals, text = override.partition("=")
        where, dot, key = path.partition(".")
        if where not in known:
            raise unknown(f"{override!r}: no section {where!r}", where, known)
        if not equals or (where in alone) == bool(key) or (where in alone and dot):
            raise UserError(f"{override!r} must have the form section.key=value, or seed=value")
        if where in alone:
            changed[where] = _value(override, text)
        elif where == "stages":
            name, _, rest = key.partition(".")
            of_stages.setdefault(name, []).append(f"{rest}={text}")
        else:
            changes.setdefault(where, {})[key] = _value(override, text)
    inherited = dict(config.get(INHERITED, {}))
    for where, change in changes.items():
        before = section_of(config, where)
        changed[where] = before | change
        if any(key in change and change[key] != before.get(key) for key in CHOOSING):
            inherited[where] = tuple(before.keys() - change.keys())
    if of_stages:
        changed["stages"] = _override_stages(config["stages"], of_stages)
    return config | changed | ({INHERITED: inherited} if inherited else {})


def _override_stages(stages: Any, overrides: Mapping[str, Sequence[str]]) -> tuple[Any, ...]:
    entries = stages if isinstance(stages, tuple) else ()
    names = [str(stage.get("name")) for stage in entries if isinstance(stage, dict)]
    for name in overrides:
        if name not in names:
            raise unknown(f"there is no stage {name!r}", name, names)
    changed = []
    for stage in entries:
        change = overrides.get(stage.get("name"), ())
        if any(override.startswith("backbone=") for override in change):
            # Another run replaces the model that the stage would train.
            stage = {k: v for k, v in stage.items() if k not in ("model", "trainer", "start")}
        changed.append(_override(stage, change, STAGE_KEYS))
    return tuple(changed)


def _value(override: str, text: str) -> Any:
    try:
        if text.startswith("("):
            try:
                return plain(ast.literal_eval(text))
            except (ValueError, SyntaxError):
                if not text.endswith(")"):
                    raise
                text = f"[{text[1:-1]}]"  # A tuple of words without quotes.
        return plain(yaml.load(text, _Yaml))
    except (yaml.YAMLError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{override!r}: {text!r} is not a value in YAML: quote text, as in 'trainer.end=\"=\"'"
        ) from error

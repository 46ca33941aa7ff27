"""Configs: where they come from, and how a command line changes them.

A config has the sections `dataset`, `model`, `trainer`, `run` and `mesh`, and a `seed`. What a
section may hold is read from what it builds (`trainers/schema.py`). In the place of `model` and
`trainer`, a pipeline has `stages` (`trainers/hybrid.py`).
"""

import ast
import json
import os
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from ml_collections import ConfigDict

import configs
from grlu.errors import UserError
from input_pipeline.local import local
from trainers.schema import CHOOSING, INHERITED, LINKS, build, section_of, unknown, validate
from trainers.values import plain

__all__ = ["build", "config_names", "load_config", "source_name", "to_json", "validate"]

_SECTIONS = ("dataset", "model", "trainer", "run", "mesh")
# What a stage may say besides, the names of other stages or runs.
STAGE_KEYS = (*LINKS, "backbone")

Source: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | ConfigDict


def load_config(source: Source, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config that `source` holds, with `overrides` applied; neither complete nor validated.

    Args:
        source: name of a file in `configs/`; path of a `.py` file with `get_config()`, of a
            `.json` file (a saved config, or the original project's), or of a `.yaml` file; a
            ConfigDict or a dict.
        overrides: `section.key=value`, the value as in YAML, or a Python tuple; for a stage of a
            pipeline with `stages.NAME.` before.

    Raises:
        UserError: naming the file and line that cannot be read, or the override that is wrong.
    """
    if isinstance(source, Mapping | ConfigDict):
        config = plain(source)
    else:
        path = _path(source)
        config = plain(_READERS[path.suffix](path))
    if "training" in config:
        from trainers import published

        config = published.translate(config)
    for where in config:
        if where not in (*_SECTIONS, "seed", "stages", *LINKS, INHERITED):
            raise unknown(f"the config has no section {where!r}", where, [*_SECTIONS, "seed"])
    alone = ("seed",) if "stages" in config else ("seed", *LINKS)
    return ConfigDict(_override(config, overrides, alone), type_safe=False)


def config_names() -> dict[str, str]:
    """Name → first line of the docstring, of every config that comes with the package."""
    names = {}
    for path in _configs():
        module = ast.parse(path.read_text(encoding="utf-8"))
        defined = (node.name for node in module.body if isinstance(node, ast.FunctionDef))
        if "get_config" in defined:
            names[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    return names


def source_name(source: Source) -> str:
    """What to call a run of `source`: the name of the config or of its file."""
    return Path(source).stem if isinstance(source, str | os.PathLike) else "run"


def to_json(config: ConfigDict) -> str:
    """A config as text, which `load_config` reads back from a file.

    Raises:
        UserError: if it holds something that JSON doesn't, such as a function.
    """
    try:
        return json.dumps(config.to_dict(), indent=2) + "\n"
    except TypeError as error:
        raise UserError(f"the config can't be saved: {error}") from error


def _configs() -> list[Path]:
    folder = Path(configs.__path__[0])
    return sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))


def _path(source: str | os.PathLike[str]) -> Path:
    path = Path(source)
    if path.suffix in _READERS:
        local(path, "the config")
        return path
    packaged = {path.stem: path for path in _configs()}
    if str(source) not in packaged:
        raise unknown(
            f"there is no config {str(source)!r}, nor is it a path that ends in "
            f"{', '.join(_READERS)}",
            str(source),
            packaged,
        )
    return packaged[str(source)]


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"the config {path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the config {path} can't be read: it is not text ({error})") from error
    if not text.strip():
        raise UserError(f"the config {path} is empty")
    return text


def _sections(path: Path, config: Any) -> Mapping[str, Any]:
    if not isinstance(config, Mapping | ConfigDict):
        raise UserError(f"the config {path} must hold sections of keys and values, not {config!r}")
    return config


def _read_python(path: Path) -> Mapping[str, Any]:
    text = _text(path)
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    try:
        exec(compile(text, str(path), "exec"), namespace)
        if "get_config" not in namespace:
            raise UserError(f"the config {path} defines no get_config()")
        config = namespace["get_config"]()
    except UserError:
        raise
    except SyntaxError as error:
        where = f"{error.filename or path}, line {error.lineno}"
        raise UserError(f"{where}: not valid Python: {error.msg}") from error
    except Exception as error:  # whatever the user's file does
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f", line {frame.lineno}" for frame in frames if frame.filename == str(path)]
        raise UserError(f"{path}{lines[-1] if lines else ''}: {_named(error)}") from error
    return _sections(path, config)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON: {error.msg}") from error
    return _sections(path, config)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    from trainers import vae_layout, yaml_layout

    try:
        config = yaml.load(_text(path), _Yaml)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UserError(f"{path}{line}: not valid YAML: {problem}") from error
    sections = _sections(path, config)
    if vae_layout.is_vae(sections):
        return vae_layout.translate(sections)
    return yaml_layout.translate(sections)


_READERS = {".py": _read_python, ".json": _read_json, ".yaml": _read_yaml, ".yml": _read_yaml}


class _Yaml(yaml.SafeLoader):
    """YAML that also takes 1e-3 for a number, as YAML 1.2 does, and None for null."""


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)
_Yaml.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"None$"), ["N"])


def _override(
    config: dict[str, Any], overrides: Sequence[str], alone: Sequence[str] = ("seed",)
) -> dict[str, Any]:
    """`config` with the overrides, and note of the keys that were meant for a replaced choice.

    `alone` are the keys that are no sections.
    """
    changes: dict[str, dict[str, Any]] = {}
    of_stages: dict[str, list[str]] = {}
    values = {}
    known = [*_SECTIONS, *alone, *(["stages"] if "stages" in config else [])]
    for override in overrides:
        path, equals, text = override.partition("=")
        where, dot, key = path.partition(".")
        if where not in known:
            raise unknown(f"{override!r}: no section {where!r}", where, known)
        if not equals or (where in alone) == bool(key) or (where in alone and dot):
            raise UserError(f"{override!r} must have the form section.key=value, or seed=value")
        if where in alone:
            values[where] = _value(override, text)
        elif where == "stages":
            of_stages.setdefault(key.partition(".")[0], []).append(
                key.partition(".")[2] + "=" + text
            )
        else:
            changes.setdefault(where, {})[key] = _value(override, text)
    inherited = dict(config.get(INHERITED, {}))
    changed: dict[str, Any] = {}
    for where, change in changes.items():
        before = section_of(config, where)
        changed[where] = before | change
        if any(key in change and change[key] != before.get(key) for key in CHOOSING):
            inherited[where] = tuple(before.keys() - change.keys())
    if of_stages:
        changed["stages"] = _override_stages(config["stages"], of_stages)
    return config | changed | values | ({INHERITED: inherited} if inherited else {})


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
            # Another run takes the place of the model that the stage was to train.
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
                text = f"[{text[1:-1]}]"  # Of words without quotes.
        return plain(yaml.load(text, _Yaml))
    except (yaml.YAMLError, ValueError, SyntaxError) as error:
        raise UserError(
            f"{override!r}: {text!r} is not a value as YAML has them: quote what is text, as in "
            "'trainer.end=\"=\"'"
        ) from error

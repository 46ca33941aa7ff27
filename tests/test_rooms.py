"""The rooms and the doors between them: which package may import which."""

import ast
import pathlib
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FRONT_DOOR = ROOT / "grlu" / "cli.py"

# Room → the other rooms, or modules of them, that it may import.
ROOMS = {
    "grlu": set(),
    "models": {"grlu"},
    "input_pipeline": {"grlu.errors"},
    "checkpoints": {"grlu.errors"},
    "trainers": {"grlu", "models", "input_pipeline", "checkpoints", "configs"},
    "reports": {"grlu.errors", "trainers"},
    "configs": set(),
    "benchmarks": {
        "grlu",
        "models",
        "input_pipeline",
        "checkpoints",
        "trainers",
        "reports",
        "configs",
    },
}

# Room → the packages that it may import besides, where that is part of its promise.
LIBRARIES = {
    "grlu": {"jax", "flax", "optax", "numpy"},
    "models": {"jax", "flax", "optax", "numpy", "safetensors"},
    "configs": {"ml_collections"},
}

FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names of all that a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}, line {node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, modules: set[str]) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def named(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_project_names_every_package_and_the_table_every_room():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]
    assert {name.partition(".")[0] for name in packages} == set(ROOMS)
    inner = {
        ".".join(path.relative_to(ROOT).parent.parts)
        for room in ROOMS
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert set(packages) == inner


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_room_imports_only_what_it_may(path):
    if path == FRONT_DOOR:
        return
    room = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        package = name.partition(".")[0]
        if package in ROOMS:
            assert package == room or within(name, ROOMS[room]), name
        elif room in LIBRARIES:
            assert package in LIBRARIES[room] | sys.stdlib_module_names, name


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_imports_the_front_door_or_tensorflow_or_a_test(path):
    for name in imports(path):
        assert not within(name, {"grlu.cli", "tensorflow", "tests"}), name

"""The rooms and the doors between them: which package may import which."""

import ast
import graphlib
import pathlib
import sys
import tomllib
from collections.abc import Mapping

import pytest

from tests.slow import slow_tests

ROOT = pathlib.Path(__file__).parents[1]
FRONT_DOORS = {ROOT / "grlu" / "cli.py", ROOT / "grlu" / "catalogue.py"}

# Room → the other rooms, or modules of them, that it may import.
ROOMS = {
    "grlu": set(),
    "models": {"grlu"},
    "input_pipeline": {"grlu.errors"},
    "checkpoints": {"grlu.errors"},
    "trainers": {"grlu", "models", "input_pipeline", "checkpoints", "configs"},
    "reports": {"grlu.errors", "trainers"},
    "configs": {"grlu.errors"},
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

# Room → its folders and files, top-down: each imports only those to its right.
TOP_DOWN = {
    "grlu": "cli catalogue __init__ inspection online micro_batches rules noise "
    "network influence activations tracing jaxprs advantages kl policy_losses preferences startup "
    "errors",
    "input_pipeline": "__init__ prepare text images data tokenizers augment preprocess binarize "
    "classes splits storage",
    "trainers": "__init__ generate api pipelines build registry evaluation policies "
    "gradient objectives completions optimizer loop devices config",
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


def module(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: pathlib.Path, modules: Mapping[str, pathlib.Path]) -> set[str]:
    """Modules of the project that a file imports, whole or in part."""
    names = {name if name in modules else name.rpartition(".")[0] for name in imports(path)}
    return names & modules.keys()


def parts(room: str) -> list[pathlib.Path]:
    return [
        path
        for path in (ROOT / room).iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    ]


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
    if path in FRONT_DOORS:
        return
    room = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        package = name.partition(".")[0]
        if package in ROOMS:
            assert package == room or within(name, ROOMS[room]), name
        elif room in LIBRARIES:
            assert package in LIBRARIES[room] | sys.stdlib_module_names, name


def part(name: str) -> str:
    """Folder or file of a room that holds a module, such as `loop` of `trainers.loop.state`."""
    folders = name.split(".")
    return folders[1] if len(folders) > 1 else "__init__"


@pytest.mark.parametrize("room", TOP_DOWN)
def test_the_parts_of_a_room_import_downwards(room):
    order = TOP_DOWN[room].split()
    assert {path.stem if path.is_file() else path.name for path in parts(room)} == set(order)
    for path in sorted((ROOT / room).rglob("*.py")):
        own = part(module(path))
        for name in imports(path):
            if within(name, {room}) and (other := part(name)) in order:
                assert order.index(own) <= order.index(other), f"{module(path)} imports {name}"


def test_no_module_imports_itself_over_others():
    modules = {module(path): path for path in FILES}
    graph = {
        name: {found for found in imported_modules(path, modules) if found != name}
        for name, path in modules.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # Raises on a circle.


def test_the_list_of_slow_tests_names_tests_that_exist():
    for test in slow_tests():
        path, _, name = test.partition("::")
        if name.startswith("test_"):
            assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(), test


def test_rooms_and_files_stay_small():
    lines = {path: len(path.read_text().splitlines()) for path in FILES}
    assert {named(path): n for path, n in lines.items() if n > 300} == {}
    folders = {path.parent for path in FILES} - {ROOT / "configs"}
    sizes = {named(f): sum(n for path, n in lines.items() if path.parent == f) for f in folders}
    assert {name: n for name, n in sizes.items() if n > 1700} == {}


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_imports_the_front_door_or_tensorflow_or_a_test(path):
    for name in imports(path):
        assert not within(name, {"grlu.cli", "tensorflow", "tests"}), name

"""Catalogue: names and summaries of everything that a config can choose.

They are read from the source files, because importing JAX takes a second.
"""

import ast
import functools
import pathlib

import configs
from grlu import _HOME
from grlu.errors import UserError

ROOT = pathlib.Path(configs.__file__).parents[1]

# Section → the module and the dict that hold its entries.
_TABLES = {
    "models": ("models", "MODELS"),
    "trainers": ("trainers.registry", "TRAINERS"),
    "objectives": ("trainers.objectives.registry", "OBJECTIVES"),
    "data sets": ("input_pipeline", "DATASETS"),
}
_PATTERNS = {
    "tfds:NAME": "Any image-classification set of TFDS.",
    "folder:PATH": "A folder of images of any size, streamed from disk.",
    "text:PATH": "Any text in a file.",
    "preferences:PATH": "Pairs of completions of which one was preferred, as JSON lines.",
}


def catalogue() -> dict[str, dict[str, str]]:
    """Return section → name → summary."""
    found = {"configs": configs.names()}
    found |= {title: _table(*place) for title, place in _TABLES.items()}
    found["data sets"] |= _PATTERNS
    found["rules"] = {
        f"grlu.{name}": _summary(f"grlu.{module}", name)
        for name, module in sorted(_HOME.items())
        if module.startswith("rules.") and name[0].isupper() and name != "Rule"
    }
    return found


def listing(section: str | None = None) -> list[str]:
    """Return the lines of the catalogue, or of one section.

    Raises:
        UserError: if there is no such section.
    """
    sections = catalogue()
    if section is not None and section not in sections:
        raise UserError(f"there is no section {section!r}; known: {', '.join(sections)}")
    shown = sections if section is None else {section: sections[section]}
    width = max(len(name) for entries in shown.values() for name in entries)
    lines = []
    for title, entries in shown.items():
        lines += [title, *(f"  {name:{width}}  {text}" for name, text in entries.items())]
    return lines


def _table(module: str, name: str) -> dict[str, str]:
    """Return key → summary of a dict display that a module assigns to a name."""
    value = _definitions(module)[name]
    assert isinstance(value, ast.Dict)
    found: dict[str, str] = {}
    for key, entry in zip(value.keys, value.values, strict=True):
        if key is None:  # **OTHER
            assert isinstance(entry, ast.Name)
            found |= _table(*_imports(module)[entry.id])
        else:
            found[ast.literal_eval(key)] = _of_entry(module, entry)
    return found


def _of_entry(module: str, entry: ast.expr) -> str:
    """Return the summary of a dict's value, a name or a call with a name or a summary."""
    if isinstance(entry, ast.Name):
        return _summary(*_imports(module).get(entry.id, (module, entry.id)))
    assert isinstance(entry, ast.Call)
    texts = [a.value for a in entry.args if isinstance(a, ast.Constant)]
    sentences = [text for text in texts if isinstance(text, str) and text.endswith(".")]
    if sentences:
        return sentences[0]
    return _of_entry(module, next(a for a in entry.args if isinstance(a, ast.Name)))


def _summary(module: str, name: str) -> str:
    """Return the first line of the docstring of a class or function."""
    found = _definitions(module)[name]
    assert isinstance(found, ast.ClassDef | ast.FunctionDef)
    return (ast.get_docstring(found) or "").partition("\n")[0]


@functools.cache
def _parsed(module: str) -> ast.Module:
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def _definitions(module: str) -> dict[str, ast.AST]:
    """Return the classes, functions and assigned values of a module by name."""
    found: dict[str, ast.AST] = {}
    for node in _parsed(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            found[getattr(target, "id", "")] = node.value
    return found


@functools.cache
def _imports(module: str) -> dict[str, tuple[str, str]]:
    """Return name → (module, original name) for the names that a module imports."""
    return {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in _parsed(module).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

"""Configs: one experiment, or one family of experiments, per file.

A config defines `get_config()`; its docstring states the command, the result and the time. A family
defines `get_config(member)` and `MEMBERS`, a dict from each member to its summary; `NAME:MEMBER`
selects one. `ALIASES` maps former names to members.
"""

import ast
import pathlib
from typing import NamedTuple

FOLDER = pathlib.Path(__file__).parent


class Entry(NamedTuple):
    """A config file.

    Attributes:
        path: the file.
        summary: first line of its docstring.
        members: member → summary; empty unless the config is a family.
        aliases: former name → member.
    """

    path: pathlib.Path
    summary: str
    members: dict[str, str]
    aliases: dict[str, str]


def entries() -> dict[str, Entry]:
    """Return the configs of the package by name, without running them."""
    found = {}
    for path in sorted(FOLDER.glob("[!_]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(n, ast.FunctionDef) and n.name == "get_config" for n in module.body):
            summary = (ast.get_docstring(module) or "").partition("\n")[0]
            found[path.stem] = Entry(
                path, summary, _constant(module, "MEMBERS"), _constant(module, "ALIASES")
            )
    return found


def names() -> dict[str, str]:
    """Return the summary of each config by name; members follow their family."""
    found = {}
    for name, entry in entries().items():
        found[name] = entry.summary
        found |= {f"{name}:{member}": text for member, text in entry.members.items()}
    return found


def _constant(module: ast.Module, name: str) -> dict[str, str]:
    """Return the literal that a module assigns to a name, or an empty dict."""
    for node in module.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    return {}

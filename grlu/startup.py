"""Startup: the cache of compiled programs, and folders that hide the project's packages."""

import contextlib
import hashlib
import importlib.util
import os
import pathlib
import platform
import time

from grlu.errors import UserError

PACKAGES = ("checkpoints", "configs", "input_pipeline", "models", "reports", "trainers")
_CPU = pathlib.Path("/proc/cpuinfo")
_WRITTEN = 60  # Seconds after which no process is still writing a program's time.


def cache_compilations() -> None:
    """Keep compiled programs in the user's cache folder, up to 2 GB.

    Call it before JAX is imported. JAX's own environment variables take precedence:
    `JAX_ENABLE_COMPILATION_CACHE=false` turns the cache off.
    """
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    given = os.environ.get("GRLU_CACHE", "")
    if "://" in given:  # Commands that need the folder reject it with an error.
        return
    folder = pathlib.Path(given or pathlib.Path(base, "grlu"))
    settings = {
        # Programs for one CPU may not run on another one that shares the home folder.
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla" / _processor()),
        "JAX_COMPILATION_CACHE_MAX_SIZE": str(2**31),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    if all(os.environ[name] == value for name, value in settings.items()):
        _repair(pathlib.Path(settings["JAX_COMPILATION_CACHE_DIR"]))


def _repair(cache: pathlib.Path) -> None:
    """Remove programs without a time of access: while there is one, JAX writes no other.

    A process that is killed between writing a program and its time leaves one behind.
    """
    for program in cache.glob("*-cache"):
        timed = program.with_name(program.name.removesuffix("-cache") + "-atime").exists()
        with contextlib.suppress(OSError):  # Another process may have removed it.
            if not timed and time.time() - program.stat().st_mtime > _WRITTEN:
                program.unlink()


def _processor() -> str:
    """Return a digest of the CPU's instruction set."""
    text = platform.machine()
    if _CPU.is_file():
        lines = _CPU.read_text(encoding="utf-8").splitlines()
        text += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def require_own_packages() -> None:
    """Raise UserError if a folder of the same name hides one of the project's packages."""
    home = pathlib.Path(__file__).parents[1]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [*(spec.submodule_search_locations or [])] if spec else []
        own = (home / name).resolve()
        if own.is_dir() and places and pathlib.Path(places[0]).resolve() != own:
            raise UserError(
                f"the folder {places[0]} hides the package {name!r} of grlu: rename it, or run "
                "from another folder"
            )

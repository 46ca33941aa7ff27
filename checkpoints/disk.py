"""Detection of disk faults: no space, truncated files, unfinished folders.

Orbax's own console messages are silenced: this package raises or logs the faults itself.
"""

import errno
import logging
import os
import re
import shutil
from pathlib import Path

import tensorstore

from grlu.errors import UserError


class _NotFromOrbax(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return f"{os.sep}orbax{os.sep}" not in record.pathname


logging.getLogger("absl").addFilter(_NotFromOrbax())


# `pathlib` collapses two slashes to one; a single letter would be a drive.
_REMOTE = re.compile(r"([A-Za-z][\w+.-]+):/+")


def local(directory: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a local folder.

    Raises:
        UserError: if the path begins with a scheme, as in gs://bucket/run, which would otherwise
            become the name of a local folder.
    """
    path = os.fspath(directory)
    if _REMOTE.match(path):
        shown = _REMOTE.sub(r"\1://", path, count=1)
        raise UserError(
            f"the folder of checkpoints {shown} is not a local path: name a local or mounted folder"
        )
    return Path(path).absolute()


def unfinished(directory: Path) -> dict[int, Path]:
    """Map steps to the folders of interrupted saves; Orbax renames completed ones."""
    folders = {}
    for path in directory.iterdir():
        step, mark, _ = path.name.partition(".orbax-checkpoint-tmp")
        if mark and step.isdigit():
            folders[int(step)] = path
    return folders


def remove_unfinished(directory: Path) -> None:
    """Remove the folders of interrupted saves."""
    for folder in unfinished(directory).values():
        shutil.rmtree(folder, ignore_errors=True)


def check_space(folder: Path, needed: int) -> None:
    """Raise OSError if fewer than `needed` bytes are free.

    Orbax would fail too, but in several threads at once, each printing its traceback.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed and {free:,} are free")


def read_through(folder: Path, arrays: int) -> None:
    """Read every stored value; raise ValueError if one is truncated or missing.

    Orbax would fail too, but in coroutines that nobody awaits, whose errors reach the console much
    later.
    """
    base = {"driver": "file", "path": f"{folder}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = store.list().result()
    if sum(key.endswith(b"/.zarray") for key in keys) < arrays:
        raise ValueError("arrays are missing")
    for key in keys:
        if not store.read(key).result().value:  # empty if the file is gone
            raise ValueError(f"{key.decode()} is missing")


def reason(error: Exception) -> str:
    """Shorten an error, which may contain a full tensorstore spec, to one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = re.split(r" \[\w+(?:\[\d+\])?=|\n", str(error), maxsplit=1)[0]
    return line.rpartition('": ')[2][:200] or type(error).__name__

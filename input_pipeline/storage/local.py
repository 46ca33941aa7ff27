"""Check for local paths: data, caches and runs live only in local folders."""

import os
import re
from pathlib import Path

from grlu.errors import UserError

# `pathlib` collapses two slashes to one; a single letter would be a drive.
_REMOTE = re.compile(r"([A-Za-z][\w+.-]+):/+")


def local(path: str | os.PathLike[str], what: str) -> Path:
    """Return a path with `~` expanded.

    Args:
        path: the path.
        what: name of the path in the error.

    Raises:
        UserError: if it begins with a scheme, as in gs://bucket/run, which would otherwise become
            the name of a local folder.
    """
    if _REMOTE.match(os.fspath(path)):
        shown = _REMOTE.sub(r"\1://", os.fspath(path), count=1)
        raise UserError(f"{what} {shown} is not a local path: name a local or mounted folder")
    return Path(path).expanduser()

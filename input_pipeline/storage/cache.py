"""Cache of decoded arrays on disk: decoding 60,000 PNGs takes seconds, reading the arrays does not.

There is one file per key: a digest, the names of the arrays, the arrays. The digest covers the
fingerprint of the source and all that follows, so a file that is truncated, damaged or made from
other data does not match and is rebuilt. (An `.npz` is not enough: nothing protects a zip file's
directory.)
"""

import functools
import hashlib
import logging
import os
import uuid
from collections.abc import Callable
from io import BufferedRandom, BufferedReader
from pathlib import Path

import numpy as np

from input_pipeline.storage.local import local

Arrays = dict[str, np.ndarray]

_FORMAT = "grlu arrays 1"  # Change it with the layout, so that old files fail to match.
_DIGEST_BYTES = 32
_log = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Return the folder of the cache: GRLU_CACHE, else XDG_CACHE_HOME/grlu, else ~/.cache/grlu.

    Raises:
        UserError: if GRLU_CACHE is remote.
    """
    if given := os.environ.get("GRLU_CACHE"):
        return local(given, "GRLU_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "grlu"


def cached(key: str, fingerprint: str, build: Callable[[], Arrays]) -> Arrays:
    """Return the arrays stored under `key`, or build and store them.

    `key` names the file, so that arrays of a changed source replace the old ones; `fingerprint`
    identifies the source. A folder that cannot be written causes only a warning.
    """
    path = cache_dir() / "datasets" / f"{key}.cache"
    arrays = _read(path, fingerprint)
    if arrays is None:
        arrays = build()
        _write(path, fingerprint, arrays)
    return arrays


def _digest(file: BufferedReader | BufferedRandom, fingerprint: str) -> bytes:
    """Return the digest of the file's content after the stored digest."""
    file.seek(_DIGEST_BYTES)
    seed = f"{_FORMAT} {fingerprint}".encode()
    return hashlib.file_digest(file, lambda: hashlib.sha256(seed)).digest()


def _read(path: Path, fingerprint: str) -> Arrays | None:
    try:
        with path.open("rb") as file:
            if file.read(_DIGEST_BYTES) == _digest(file, fingerprint):
                file.seek(_DIGEST_BYTES)
                return {str(name): np.load(file) for name in np.load(file)}
        _log.warning("%s is damaged or made from other data: decoding again", path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        _log.warning("%s cannot be read (%s): decoding again", path, error.strerror)
    return None


def _write(path: Path, fingerprint: str, arrays: Arrays) -> None:
    """Write to a temporary file and rename it: other processes never see an incomplete file."""
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with unfinished.open("x+b") as file:
                file.write(bytes(_DIGEST_BYTES))
                for array in (np.array(list(arrays)), *arrays.values()):
                    np.save(file, array)
                digest = _digest(file, fingerprint)
                file.seek(0)
                file.write(digest)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        _warn_unwritable(path.parent, error.strerror or str(error))


@functools.cache
def _warn_unwritable(folder: Path, reason: str) -> None:
    _log.warning(
        "decoded images cannot be stored in %s (%s), so every start decodes them again;"
        " set GRLU_CACHE to another folder",
        folder,
        reason,
    )

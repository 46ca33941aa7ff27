"""Search for data sets prepared by TFDS: DATA_DIR/NAME[/CONFIG]/VERSION."""

import hashlib
import os
import re
import shlex
from pathlib import Path

from grlu.errors import UserError
from input_pipeline.storage.local import local
from input_pipeline.storage.names import nearest

TFDS = "tfds:"
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def data_root(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of the data sets: `data_dir`, else TFDS_DATA_DIR, else TFDS's default.

    Raises:
        UserError: if `data_dir` is not a local path.
    """
    if data_dir is not None and not isinstance(data_dir, str | os.PathLike):
        raise UserError(f"dataset.data_dir must be the path of a folder, not {data_dir!r}.")
    if data_dir:
        return local(data_dir, "dataset.data_dir")
    # Data sets that use it reject a remote folder; others ignore it.
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find(name: str, root: Path) -> Path | None:
    """Return the newest version of a TFDS set in `root` stored as array_record, or None.

    Args:
        name: name of the set, with or without "tfds:" in front; it may pin a configuration and a
            version: `emnist/letters:3.1.0`.
        root: folder of the data sets.

    Raises:
        UserError: if the set exists only in another format, several configurations match, or the
            folder cannot be read.
    """
    try:
        folder, _, pinned = name.removeprefix(TFDS).partition(":")
        found = [path for path in _versions(root / folder) if pinned in ("", path.name)]
        readable = [path for path in found if any(path.glob("*.array_record-*"))]
    except PermissionError as error:
        raise UserError(f"no permission to read {error.filename}.") from error
    if found and not readable:
        raise UserError(
            f"{found[0]} is stored in another format than array_record, the only supported one:"
            f" move it away and run `{prepare_command(name, root)}`."
        )
    return readable[0] if readable else None


def _versions(folder: Path) -> list[Path]:
    """Return the complete versions of a set, or of its only configuration, newest first.

    Raises:
        UserError: if it has several configurations.
    """
    if not folder.is_dir():
        return []
    subfolders = [path for path in folder.iterdir() if path.is_dir()]
    versions = [
        path
        for path in subfolders
        if _VERSION.fullmatch(path.name) and (path / "dataset_info.json").is_file()
    ]
    if versions:
        return sorted(versions, key=lambda path: [int(n) for n in path.name.split(".")])[::-1]
    configurations = [path for path in subfolders if _versions(path)]
    if len(configurations) > 1:
        names = ", ".join(sorted(f"{folder.name}/{path.name}" for path in configurations))
        raise UserError(f"{folder} holds several configurations: name one of {names}.")
    return _versions(configurations[0]) if configurations else []


def missing(name: str, root: Path) -> UserError:
    """Return the error for a missing TFDS set, with the folder and the command to prepare it."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    tfds_name = name.removeprefix(TFDS)
    base = re.split("[/:]", tfds_name)[0]
    if base not in known:
        return UserError(
            f"there is no data set {tfds_name!r} in {root}, and TFDS has none of that name: its"
            f" nearest is {nearest(base, known)!r}."
        )
    return UserError(
        f"the data set {name!r} is not in {root}: run `{prepare_command(name, root)}`, or set"
        f" dataset.data_dir or TFDS_DATA_DIR to the folder that contains {base}/."
    )


def prepare_command(name: str, root: Path) -> str:
    """Return the shell command that prepares TFDS's set `name` in `root`."""
    variable = "" if root == data_root() else f"TFDS_DATA_DIR={shlex.quote(str(root))} "
    return f"{variable}grlu data prepare {name}"


def fingerprint(folder: Path) -> str:
    """Return a digest of every file in `folder`: names and contents.

    Sizes are not enough: record files are padded to 64 KiB, so that sets with different labels can
    have equal sizes. MNIST's 27 MB take about 20 ms.

    Raises:
        UserError: if a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(folder.iterdir()):
            if path.is_file():
                digest.update(f"{path.name}\n".encode())
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()

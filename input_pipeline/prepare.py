"""Preparation of the record files that the loaders read, from a download or local IDX files.

TFDS writes the files in both cases: it orders examples by a hash of their numbers, names the files,
and renames the folder last, so that a data set is never incomplete. Images published as IDX
files are passed as PNG bytes, which needs no TensorFlow; all other sets need it.
"""

import contextlib
import functools
import importlib.util
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin

import numpy as np

from grlu.errors import UserError
from input_pipeline.images.idx import read_labelled_images
from input_pipeline.storage.local import local
from input_pipeline.storage.names import nearest
from input_pipeline.storage.prepared import data_root, find
from input_pipeline.text.files import prepare_shakespeare
from input_pipeline.text.tasks import TASKS

_IDX_SETS = ("mnist", "fashion_mnist", "kmnist")
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


class Prepared(NamedTuple):
    """Result of a preparation.

    Attributes:
        folder: folder of the data set.
        written: True if this call wrote it, False if it already existed.
    """

    folder: Path
    written: bool


def prepare(
    name: str,
    source: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> Prepared:
    """Prepare a TFDS set as array_record, or the text `shakespeare`, unless it already exists.

    Args:
        name: name of the set, such as `mnist` or `tfds:cifar100`.
        source: folder with the four gzipped IDX files of mnist, fashion_mnist or kmnist, or with
            tinyshakespeare.txt; None to download the set.
        data_dir: target folder, else TFDS_DATA_DIR, else TFDS's default.

    Raises:
        UserError: if the set is unknown, the source is missing or damaged, TensorFlow is required
            but missing, the download fails, or the folder cannot be written.
    """
    if name in ("digits", "sonnets", *TASKS):
        raise UserError(f"the data set {name!r} needs no files: there is nothing to prepare.")
    root = local(data_root(data_dir), "TFDS_DATA_DIR")
    if source is not None:
        source = local(source, "the source")
    if name == "shakespeare":
        return Prepared(root, written=prepare_shakespeare(source, root))
    tfds_name = name.removeprefix("tfds:")
    if source is not None and tfds_name not in _IDX_SETS:
        raise UserError(
            f"the data set {name!r} cannot be built from a folder of IDX files: only"
            f" {', '.join(_IDX_SETS)} can."
        )
    if folder := find(name, root):
        return Prepared(folder, written=False)
    builder = _builder(tfds_name, root)
    if tfds_name in _IDX_SETS:
        _read_idx_files(builder, source)
    try:
        written = _write(builder, keep_downloads=source is None)
    except UserError:
        raise
    except Exception as error:  # The network, the disk, a missing package, ...
        if folder := find(name, root):  # Another process was faster.
            return Prepared(folder, written=False)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        otherwise = (
            f" (without a network: `grlu data prepare {name} --from DIR`, with its four IDX files)"
            if tfds_name in _IDX_SETS and source is None
            else ""
        )
        raise UserError(
            f"the data set {name!r} cannot be prepared in {root}: {reason}{otherwise}"
        ) from error
    folder = find(name, root)
    if folder is None:
        raise UserError(f"{builder.data_dir} is not a complete data set: remove it and try again.")
    return Prepared(folder, written)


def _builder(tfds_name: str, root: Path) -> Any:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    base = re.split("[/:]", tfds_name)[0]
    if base not in known:
        raise UserError(
            f"TFDS knows no data set {tfds_name!r}: its nearest is {nearest(base, known)!r}."
        )
    try:
        builder = tfds.builder(tfds_name, data_dir=root, file_format="array_record")
    except ValueError as error:  # An unknown configuration or version.
        raise UserError(
            f"TFDS cannot prepare {tfds_name!r}: {str(error).splitlines()[0]}"
        ) from error
    if tfds_name not in _IDX_SETS and importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"preparing the data set {tfds_name!r} needs TensorFlow (reading it does not): run"
            " `pip install grlu[prepare]`."
        )
    return builder


def _write(builder: Any, *, keep_downloads: bool) -> bool:
    """Write the data set; return False if another process has written it in the meantime."""
    import tensorflow_datasets as tfds

    written = False
    split_generators = builder._split_generators

    @functools.wraps(split_generators)  # TFDS reads its signature.
    def recorded(*args: Any, **kwargs: Any) -> Any:
        nonlocal written
        written = True
        return split_generators(*args, **kwargs)

    builder._split_generators = recorded
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with (
        tempfile.TemporaryDirectory() as scratch,
        contextlib.redirect_stdout(sys.stderr),  # TFDS prints its progress to stdout.
    ):
        builder.download_and_prepare(
            download_dir=None if keep_downloads else scratch,
            download_config=tfds.download.DownloadConfig(try_download_gcs=False),
        )
    return written


def _read_idx_files(builder: Any, source: Path | None) -> None:
    """Make `builder` read IDX files from `source`, or download them, with our own reader."""
    shape = builder.info.features["image"].shape[:2]
    num_classes = builder.info.features["label"].num_classes

    def read(paths: dict[str, Path]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {
            split: read_labelled_images(paths[images], paths[labels], shape, num_classes)
            for split, (images, labels) in _IDX_FILES.items()
        }

    names = [name for files in _IDX_FILES.values() for name in files]
    local = None if source is None else read({name: source / name for name in names})

    def split_generators(downloads: Any) -> dict[str, Iterator[Any]]:
        splits = local or read(
            downloads.download({name: urljoin(builder.URL, name) for name in names})
        )
        return {split: _examples(images, labels) for split, (images, labels) in splits.items()}

    builder._split_generators = split_generators


def _examples(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    from PIL import Image

    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        png.seek(0)
        yield index, {"image": png, "label": int(label)}

"""Folders of images of any size, decoded into one file on disk, from which training streams.

Splits depend on a hash of each file's path within the folder, so that images stay in their splits
when others are added.
"""

import hashlib
import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from grlu.errors import UserError
from input_pipeline.augment import augmentation
from input_pipeline.data import Data
from input_pipeline.preprocess import preprocess_for
from input_pipeline.storage.cache import cache_dir
from input_pipeline.storage.local import local
from input_pipeline.storage.on_disk import OnDisk

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
_LAYOUT = 2  # Version of the decoded files' layout; change both together.
_SPLITS = ("train", "validation", "test")
_log = logging.getLogger("grlu")


def image_folder(path: str) -> Callable[..., Data]:
    """Return the loader of a folder of images, with its subfolders as classes."""

    def load(
        *,
        size: int = 64,
        colour: Literal["rgb", "grey"] = "rgb",
        validation: float = 0.1,
        test: float = 0.1,
        normalize: str = "unit",
        flatten: bool = False,
        crop: int = 0,
        flip: bool = False,
        cutout: int = 0,
    ) -> Data:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UserError(f"dataset.size must be a positive number of pixels, not {size!r}.")
        if colour not in ("rgb", "grey"):
            raise UserError(f"dataset.colour must be rgb or grey, not {colour!r}.")
        if not (validation >= 0 and test > 0 and validation + test < 1):
            raise UserError(
                "dataset.validation and dataset.test must be fractions of the images that leave "
                f"some to train on, not {validation!r} and {test!r}."
            )
        root = local(path, "the folder")
        files = _images(root)
        shape = (size, size, 3 if colour == "rgb" else 1)
        classes = sorted({file.parent for file in files})
        folder = _decoded(root, files, classes, shape, validation, test)
        arrays: dict[str, Any] = {
            split: {
                "image": OnDisk(folder / f"{split}_image.raw", shape),
                "label": np.load(folder / f"{split}_label.npy"),
            }
            for split in _SPLITS
            if (folder / f"{split}_label.npy").is_file()
        }
        for split in ("train", "test"):
            if split not in arrays:
                raise UserError(
                    f"{root} leaves the {split} split without images: it has only {len(files)}, "
                    "put more there or change dataset.validation and dataset.test."
                )
        preprocess = preprocess_for(arrays["train"]["image"], normalize=normalize, flatten=flatten)
        return Data(
            name=f"folder:{path}",
            train=arrays["train"],
            validation=arrays.get("validation"),
            test=arrays["test"],
            preprocess=preprocess,
            example_shape=(math.prod(shape),) if flatten else shape,
            num_classes=len(classes),
            augment=augmentation(crop, flip, cutout, preprocess, shape),
        )

    load.__name__ = load.__qualname__ = f"folder:{path}"
    load.__doc__ = f"""The images in {path}.

        Args:
            size: side in pixels to which the largest central square of an image is resized.
            colour: "rgb" or "grey".
            validation: fraction of the images in the validation split.
            test: fraction of the images in the test split.
            normalize: "standard", "centered", "unit" or "none".
            flatten: flatten each image.
            crop: largest random shift of a training image in pixels.
            flip: mirror training images at random.
            cutout: side of a random black square in each training image, in pixels.
        """
    return load


def _images(root: Path) -> list[Path]:
    """Return the sorted paths of the images, relative to `root`.

    Raises:
        UserError: if there are no images.
    """
    if not root.is_dir():
        raise UserError(f"dataset.name: {root} is not a folder.")
    found = sorted(
        file.relative_to(root)
        for file in root.rglob("*")
        if file.suffix.lower() in _SUFFIXES and file.is_file()
    )
    if not found:
        raise UserError(
            f"{root} and its subfolders hold no images ({', '.join(sorted(_SUFFIXES))})."
        )
    return found


def _split_of(file: Path, validation: float, test: float) -> str:
    place = int.from_bytes(hashlib.sha256(file.as_posix().encode()).digest()[:6], "big") / 2**48
    return "test" if place < test else "validation" if place < test + validation else "train"


def _decoded(
    root: Path,
    files: list[Path],
    classes: list[Path],
    shape: tuple[int, int, int],
    validation: float,
    test: float,
) -> Path:
    """Return the folder of the decoded splits, decoding them if it does not exist."""
    stats = [(file.as_posix(), (root / file).stat()) for file in files]
    stamps = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    key = json.dumps([_LAYOUT, str(root.resolve()), stamps, shape, validation, test])
    folder = cache_dir() / "folders" / hashlib.sha256(key.encode()).hexdigest()[:32]
    if folder.is_dir():
        return folder
    unfinished = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        unfinished.mkdir(parents=True)
        skipped = []
        for split in _SPLITS:
            chosen = [file for file in files if _split_of(file, validation, test) == split]
            skipped += _decode(root, chosen, classes, shape, unfinished, split)
        if skipped:
            _log.warning(
                "%d of %d images in %s are unreadable and left out: %s",
                len(skipped),
                len(files),
                root,
                ", ".join(map(str, skipped[:10])) + (", ..." if len(skipped) > 10 else ""),
            )
        try:
            os.replace(unfinished, folder)
        except OSError:
            if not folder.is_dir():  # If it exists, another process has decoded the images.
                raise
    except OSError as error:
        raise UserError(
            f"decoded images cannot be stored in {folder.parent} ({error.strerror}): set GRLU_CACHE"
            " to a folder with enough space."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _decode(
    root: Path,
    files: list[Path],
    classes: list[Path],
    shape: tuple[int, int, int],
    folder: Path,
    split: str,
) -> list[Path]:
    """Write a split's images and labels; return the files that could not be read."""
    from PIL import Image, ImageOps
    from rich.console import Console
    from rich.progress import track

    console, skipped, labels = Console(stderr=True), [], []
    with (folder / f"{split}_image.raw").open("wb") as raw:
        for file in track(files, f"decoding {split}", console=console, transient=True):
            try:
                with Image.open(root / file) as image:
                    image.draft("RGB" if shape[2] == 3 else "L", (2 * shape[1], 2 * shape[0]))
                    pixels = image.convert("RGB" if shape[2] == 3 else "L")
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
                skipped.append(file)
                continue
            # The largest central square, resized.
            fitted = ImageOps.fit(pixels, (shape[1], shape[0]), Image.Resampling.BILINEAR)
            raw.write(np.asarray(fitted, np.uint8).tobytes())
            labels.append(classes.index(file.parent))
    if labels:
        np.save(folder / f"{split}_label.npy", np.array(labels, np.int32))
    return skipped

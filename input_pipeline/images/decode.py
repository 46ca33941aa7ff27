"""Decoding of one split of a prepared TFDS image set into arrays.

Pillow decodes all images, even if other decoders are installed: they differ in a JPEG's last bit.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import track

from grlu.errors import UserError

_CHUNK = 1000  # Records to fetch at once, in parallel.
_PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def decode_split(folder: Path, split: str, remedy: str) -> dict[str, np.ndarray]:
    """Return `image` (N, H, W, C) uint8, `label` (N,) int32 and `num_classes` () of a split.

    Args:
        folder: folder of the set.
        split: split in TFDS's notation (`train`, `train[:80%]`).
        remedy: command to suggest in errors about damaged files.

    Raises:
        UserError: if the split does not exist, the set has no labelled uint8 images of one size, or
            its files are damaged.
    """
    try:
        builder = tfds.builder_from_directory(folder, file_format="array_record")
    except Exception as error:  # Damaged JSON raises many kinds of errors.
        raise _damaged(folder, error, remedy) from error
    image_key, label_key = _keys(builder.info, folder)
    shape = _image_shape(builder.info.features[image_key], folder)
    num_classes = builder.info.features[label_key].num_classes
    try:
        source = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
        images = np.empty((len(source), *shape), np.uint8)
    except ValueError as error:
        raise UserError(
            f"{folder} has no split {split!r} with images: it has {', '.join(builder.info.splits)}"
            " and parts of these, such as 'train[:80%]'."
        ) from error
    labels = np.empty(len(source), np.int32)
    try:
        for start in _progress(range(0, len(source), _CHUNK), f"decoding {folder} {split}"):
            chunk = range(start, min(start + _CHUNK, len(source)))
            for index, record in zip(chunk, source.__getitems__(list(chunk)), strict=True):
                images[index] = _decode(record[image_key], shape)
                labels[index] = record[label_key]
    except Exception as error:  # The C++ reader and Pillow raise many kinds of errors.
        raise _damaged(folder, error, remedy) from error
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"the split {split!r} of {folder} has labels from {labels.min()} to {labels.max()}, and"
            f" the set's {num_classes} classes are numbered from 0 (-1 often means unlabelled)."
        )
    return {"image": images, "label": labels, "num_classes": np.array(num_classes)}


def _damaged(folder: Path, error: Exception, remedy: str) -> UserError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(f"{folder} is damaged ({reason}): remove it and run `{remedy}`.")


def _keys(info: Any, folder: Path) -> tuple[str, str]:
    """Return the names of image and label: the supervised keys, or the only candidates."""
    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    fields = dict(info.features) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    found = [[key for key, field in fields.items() if isinstance(field, kind)] for kind in kinds]
    pair = info.supervised_keys
    if isinstance(pair, tuple) and len(pair) == 2:
        found = [[key] if key in keys else keys for key, keys in zip(pair, found, strict=True)]
    if [len(keys) for keys in found] != [1, 1]:
        raise UserError(
            f"{folder} is not a set of images with one label each: its features are"
            f" {', '.join(sorted(fields)) or info.features}."
        )
    return found[0][0], found[1][0]


def _image_shape(feature: Any, folder: Path) -> tuple[int, ...]:
    dtype = np.dtype(feature.np_dtype)  # Plain `dtype` would import TensorFlow.
    if None in feature.shape or feature.shape[-1] not in _PILLOW_MODES or dtype != np.uint8:
        raise UserError(
            f"{folder} has images of shape {feature.shape} and type {dtype}: only images of one"
            " fixed size, with 1, 3 or 4 channels of uint8, can be read."
        )
    return tuple(feature.shape)


def _decode(encoded: bytes, shape: tuple[int, ...]) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        pixels = np.asarray(image.convert(_PILLOW_MODES[shape[-1]])).reshape(*image.size[::-1], -1)
    if pixels.shape != shape:
        raise ValueError(f"expected an image of shape {shape}, got {pixels.shape}")
    return pixels


def _progress(steps: range, description: str) -> Any:
    """Return `steps` with a progress bar, shown only on a terminal."""
    console = Console(stderr=True)
    return track(
        steps, description, console=console, transient=True, disable=not console.is_terminal
    )

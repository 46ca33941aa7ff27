"""Reader of gzipped IDX files, the published format of MNIST.

The format has four bytes of magic (zero, zero, type, number of axes), each axis as a big-endian
32-bit integer, then the values. Source: http://yann.lecun.com/exdb/mnist
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from grlu.errors import UserError

_UINT8 = 0x08


def read_idx(path: Path, axes: int) -> np.ndarray:
    """Return the uint8 array of `axes` axes in the gzipped IDX file at `path`.

    Raises:
        UserError: if the file is missing, is not gzip or IDX, or ends too early or too late.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: it must hold gzipped IDX data.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a complete gzip file ({error}): get it again.") from error
    magic = bytes([0, 0, _UINT8, axes])
    if content[:4] != magic:
        raise UserError(
            f"{path} is not an IDX file of bytes in {axes} axes: it must begin with {magic.hex()},"
            f" not {content[:4].hex() or 'nothing'}."
        )
    header = 4 + 4 * axes
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4))
    if len(content) != header + math.prod(shape):
        raise UserError(
            f"{path} holds {max(len(content) - header, 0)} bytes of data, but its header announces"
            f" {math.prod(shape)}, of shape {shape}: get it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_labelled_images(
    images_path: Path, labels_path: Path, image_shape: tuple[int, ...], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, H, W) and labels (N,), both uint8, of one split.

    Raises:
        UserError: if a file does not match the data set or the other file.
    """
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != image_shape:
        raise UserError(
            f"{images_path} must hold images of {image_shape} pixels, not {images.shape[1:]}."
        )
    if not len(images):
        raise UserError(f"{images_path} holds no images.")
    if len(images) != len(labels):
        raise UserError(
            f"{labels_path} holds {len(labels)} labels for the {len(images)} images of"
            f" {images_path.name}."
        )
    if labels.max() >= num_classes:
        raise UserError(
            f"{labels_path} holds the label {labels.max()}, but the {num_classes} classes are"
            f" numbered from 0 to {num_classes - 1}."
        )
    return images, labels

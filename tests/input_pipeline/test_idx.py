import gzip
import re
import struct

import numpy as np
import pytest

from grlu.errors import UserError
from input_pipeline.images.idx import read_idx, read_labelled_images

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def write(path, content):
    with gzip.open(path, "wb") as file:
        file.write(content)
    return path


def idx(array):
    return struct.pack(f">{1 + array.ndim}i", 0x800 + array.ndim, *array.shape) + array.tobytes()


def test_read_back(tmp_path):
    array = read_idx(write(tmp_path / "images.gz", idx(IMAGES)), 3)
    np.testing.assert_array_equal(array, IMAGES)
    assert array.dtype == np.uint8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must begin with .*, not nothing"),
        (b"\x00\x00\x08", "must begin with 00000803, not 000008"),
        (idx(IMAGES[0]), "must begin with 00000803, not 00000802"),
        (b"\x00\x00\x0d\x03" + idx(IMAGES)[4:], "must begin with .*, not 00000d03"),
        (idx(IMAGES)[:10], "holds 0 bytes of data"),
        (idx(IMAGES)[:-1], r"holds 23 bytes .* announces 24, of shape \(2, 3, 4\)"),
        (idx(IMAGES) + b"x", "holds 25 bytes"),
    ],
)
def test_wrong_content_names_the_file(tmp_path, content, message):
    path = write(tmp_path / "images.gz", content)
    with pytest.raises(UserError, match=f"{re.escape(str(path))} .*{message}"):
        read_idx(path, 3)


def test_missing(tmp_path):
    with pytest.raises(UserError, match=r"none\.gz is missing"):
        read_idx(tmp_path / "none.gz", 3)


def test_not_gzip(tmp_path):
    path = tmp_path / "plain.gz"
    path.write_bytes(idx(IMAGES))
    with pytest.raises(UserError, match=r"plain\.gz is not a complete gzip file"):
        read_idx(path, 3)


def test_a_gzip_file_cut_short_or_damaged_anywhere(tmp_path):
    path = write(tmp_path / "images.gz", idx(IMAGES))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"images\.gz"):
            read_idx(path, 3)
    for position in range(10 + len("images") + 1, len(whole)):  # The data, after gzip's header.
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"images\.gz"):
            read_idx(path, 3)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, [1, 2, 3], r"labels\.gz holds 3 labels for the 2 images"),
        (IMAGES, [1, 10], r"labels\.gz holds the label 10, but the 10 classes .* from 0 to 9"),
        (IMAGES[:, :2], [1, 2], r"images\.gz must hold images of \(3, 4\) pixels, not \(2, 4\)"),
        (IMAGES[:0], [], r"images\.gz holds no image"),
    ],
)
def test_mismatched_files_are_refused(tmp_path, images, labels, message):
    images_path = write(tmp_path / "images.gz", idx(images))
    labels_path = write(tmp_path / "labels.gz", idx(np.array(labels, np.uint8)))
    with pytest.raises(UserError, match=message):
        read_labelled_images(images_path, labels_path, (3, 4), 10)

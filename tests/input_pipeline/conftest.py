"""Small data sets on disk, written by the code and by TFDS; each test has its own cache."""

import gzip
import io
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from input_pipeline import load, prepare


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Keep tests away from the user's cache and data."""
    monkeypatch.setenv("GRLU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


@pytest.fixture(scope="session")
def mnist_cache(tmp_path_factory):
    """Return the shared cache of the decoded real MNIST."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def mnist(mnist_cache, monkeypatch):
    """Return a function that loads the real MNIST as TFDS prepares it."""
    folder = os.environ.get("GRLU_TEST_DATA")
    if not folder:
        pytest.skip("GRLU_TEST_DATA does not name a folder with MNIST in tfds/mnist.")
    monkeypatch.setenv("GRLU_CACHE", str(mnist_cache))
    return lambda **options: load("mnist", data_dir=str(Path(folder) / "tfds"), **options)


def write_idx(folder, train=50, test=20):
    """Write four IDX files of random 28x28 images; return {split: (images, labels)}."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    arrays = {}
    for split, prefix, count in (("train", "train", train), ("test", "t10k", test)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        arrays[split] = images, labels
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">{1 + array.ndim}i", 0x800 + array.ndim, *array.shape)
            with gzip.open(folder / f"{prefix}-{kind}-ubyte.gz", "wb") as file:
                file.write(header + array.tobytes())
    return arrays


@pytest.fixture
def make_idx():
    """Return the function that writes IDX files."""
    return write_idx


@pytest.fixture
def idx(tmp_path):
    """Return a folder with small IDX files that the test may break."""
    write_idx(tmp_path / "idx")
    return tmp_path / "idx"


@pytest.fixture(scope="session")
def prepared_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    write_idx(folder / "idx")
    prepare("mnist", folder / "idx", folder / "data")
    return folder / "data"


@pytest.fixture
def data_dir(prepared_once, tmp_path):
    """Return a data folder with a small mnist (50 + 20) that the test may break."""
    return Path(shutil.copytree(prepared_once, tmp_path / "data"))


@pytest.fixture
def write_set():
    """Return a function that writes any TFDS set as array_record."""

    def write(root, name, features, splits, version="1.0.0", config=None):
        import tensorflow_datasets as tfds

        builder = tfds.dataset_builders.AdhocBuilder(
            name=name,
            version=version,
            features=tfds.features.FeaturesDict(features),
            split_datasets={},
            data_dir=root,
            config=config,
            file_format="array_record",
        )
        # The builder's own method needs TensorFlow for the type of each split.
        builder._split_generators = lambda downloads: {
            split: enumerate(examples) for split, examples in splits.items()
        }
        builder.download_and_prepare()
        return Path(builder.data_dir)

    return write


@pytest.fixture
def png():
    """Return a function that encodes an array as a PNG file."""
    from PIL import Image

    def encode(array):
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        file.seek(0)
        return file

    return encode

"""What all tests share: strictness, and the folder of the real data."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def data_dir() -> pathlib.Path:
    """The TFDS folder with the real MNIST; the variable GRLU_TEST_DATA names its parent."""
    root = os.environ.get("GRLU_TEST_DATA")
    if not root or not (pathlib.Path(root) / "tfds" / "mnist").is_dir():
        pytest.skip("set GRLU_TEST_DATA to a folder with tfds/mnist to test on the real MNIST")
    return pathlib.Path(root) / "tfds"

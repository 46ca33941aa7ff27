"""What all tests share: strictness, and the folder of the real data."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="session")
def compilation_cache(tmp_path_factory):
    """Compiled programs are kept for the session, also for the processes that tests start."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(root / "xla")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    jax.config.update("jax_compilation_cache_dir", str(root / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def data_dir() -> pathlib.Path:
    """The TFDS folder with the real MNIST; the variable GRLU_TEST_DATA names its parent."""
    root = os.environ.get("GRLU_TEST_DATA")
    if not root or not (pathlib.Path(root) / "tfds" / "mnist").is_dir():
        pytest.skip("set GRLU_TEST_DATA to a folder with tfds/mnist to test on the real MNIST")
    return pathlib.Path(root) / "tfds"

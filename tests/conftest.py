"""Fixtures of all tests: strictness, fast compilation, devices and the folder of real data."""

import gc
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from grlu.network import parameter_names
from grlu.noise.parameters import ParameterNoise
from grlu.rules.rule import pure_objective
from tests.slow import slow_tests

jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation dominates the tests: programs this small need not be fast.
FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):
    # Later versions have no other emitters.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
# By default, a tenth of the time goes into the search for garbage in what JAX keeps.
gc.set_threshold(100_000, 20, 20)
LONGEST = {"test_mesh.py", "test_processes.py", "test_rlhf.py"}
COMPILING = {
    "jax_disable_most_optimizations": True,
    "jax_persistent_cache_min_compile_time_secs": 0.05,
    "jax_compilation_cache_max_size": -1,  # All processes must agree on whether it has a limit.
}


def pytest_collection_modifyitems(items):
    """Mark the tests of `tests/slow.txt`, and begin with the longest: none is left at the end."""
    slow = slow_tests()
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        if item.nodeid in slow:
            item.add_marker("slow")


@pytest.fixture(autouse=True, scope="session")
def compiling(tmp_path_factory):
    """Compile quickly and cache programs for the session, also in child processes."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    for name, value in {**COMPILING, "jax_compilation_cache_dir": str(root / "xla")}.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


@pytest.fixture(autouse=True, scope="module")
def forgetting():
    """Free compiled programs after each module: together they need gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def devices():
    """Return the environment of a process with a number of devices."""

    def of(count: int) -> dict[str, str]:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}

    return of


@pytest.fixture(scope="session")
def low_rank_noise():
    """Check that low-rank noise moves a model like the same noise in full matrices."""

    def check(model: nnx.Module, reward_fn, batch, rtol: float = 1e-5) -> set[str]:
        """Return the names of the parameters with low-rank noise."""
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        objective = pure_objective(graphdef, reward_fn)
        noise = ParameterNoise(objective, params, rest, batch, 1)

        @jax.jit
        def both(step):
            direction = noise.draw(jax.random.key(1))
            one = jax.tree.map(lambda e: e[None], direction)
            epsilon = noise.restore(noise.weighted(one, jnp.ones(1)))
            moved = jax.tree.map(lambda p, e: p + step * e, params, epsilon)
            return noise.rewards(direction, step, rest, batch), objective(moved, rest, batch)[0]

        for step in (0.1, -0.1):
            found, expected = both(step)
            np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-5)
        names = parameter_names(params)
        return {names[i] for i in noise.low}

    return check


@pytest.fixture
def data_dir() -> pathlib.Path:
    """Return the TFDS folder with real MNIST; GRLU_TEST_DATA names its parent."""
    root = os.environ.get("GRLU_TEST_DATA")
    if not root or not (pathlib.Path(root) / "tfds" / "mnist").is_dir():
        pytest.skip("set GRLU_TEST_DATA to a folder with tfds/mnist to test on the real MNIST")
    return pathlib.Path(root) / "tfds"

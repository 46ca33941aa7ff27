"""Restoration on other devices than those that saved."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from checkpoints import Checkpoints

ROOT = Path(__file__).parents[2]

ON_EIGHT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from checkpoints import Checkpoints

def state(devices, shape, axes, value):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]).reshape(shape), axes)
    rows = NamedSharding(mesh, PartitionSpec(axes[0]))
    whole = NamedSharding(mesh, PartitionSpec())
    return {
        "w": jax.device_put(value * jnp.arange(48.0).reshape(8, 6), rows),
        "key": jax.device_put(jax.random.key(int(value)), whole),
        "keys": jax.device_put(jax.random.split(jax.random.key(int(value)), 8), rows),
        "step": jax.device_put(jnp.int32(value), whole),
    }

saved = state(8, (4, 2), ("data", "population"), 3.0)
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, saved, metrics={}, meta={})
    for like in (
        state(8, (4, 2), ("data", "population"), 0.0),
        state(2, (2,), ("data",), 0.0),
        state(1, (1,), ("data",), 0.0),
    ):
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        for target in (like, abstract):
            restored = checkpoints.restore(target).state
            for name, leaf in restored.items():
                assert leaf.sharding == like[name].sharding, (name, leaf.sharding)
                assert leaf.dtype == saved[name].dtype
                a, b = (x if name in ("w", "step") else jax.random.key_data(x)
                        for x in (leaf, saved[name]))
                np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
"""


def test_state_from_eight_devices_restores_on_any(tmp_path, devices):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ON_EIGHT, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, **devices(8)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    like = {
        "w": jnp.zeros((8, 6)),
        "key": jax.random.key(0),
        "keys": jax.random.split(jax.random.key(0), 8),
        "step": jnp.int32(0),
    }
    with Checkpoints(tmp_path) as checkpoints:  # in this process, with any devices
        restored = checkpoints.restore(like).state
    np.testing.assert_array_equal(restored["w"], 3 * np.arange(48.0).reshape(8, 6))
    assert restored["step"] == 3
    assert (restored["key"] == jax.random.key(3)).all()
    assert not restored["w"].committed

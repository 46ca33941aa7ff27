"""Programs of one step give the results of a loop over steps."""

import jax
import numpy as np
import pytest

from trainers.api import resolve
from trainers.build import make_experiment
from trainers.loop.compiled import compile_chunk

CONV = {"name": "conv_autoencoder", "channels": (2,), "latent": 3}


def experiment(**run):
    config = {
        "dataset": {"name": "digits", "normalize": "unit", "flatten": False},
        "model": CONV,
        "trainer": {"name": "backprop", "objective": "reconstruction", "batch_size": 8},
        "run": run,
    }
    return make_experiment(resolve(config))


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_convolutions_run_step_by_step_with_the_same_result(seeds):
    given = experiment(seeds=seeds)
    assert not given.trainer.looped
    arrays, rows = dict(given.train), given.order(0)[..., :4, :]
    found = compile_chunk(given)(given.init(), arrays, rows, 3)
    given.trainer.looped = True
    expected = compile_chunk(given)(given.init(), arrays, rows, 3)
    np.testing.assert_array_equal(found[0].step, 3)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if not jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_first_non_finite_step_is_reported():
    given = experiment()
    preprocess = given.preprocess

    def spoilt(batch):
        batch = preprocess(batch)
        return batch | {"image": batch["image"] / (batch["label"] != 99)[:, None, None, None]}

    object.__setattr__(given, "preprocess", spoilt)
    arrays, rows = dict(given.train), given.order(0)[:4]
    arrays["label"] = arrays["label"].copy()
    arrays["label"][rows[2, 0]] = 99
    _, _, (broken, _) = compile_chunk(given)(given.init(), arrays, rows, 4)
    assert int(broken) == 2


def test_dense_models_loop():
    config = {"dataset": {"name": "digits"}, "model": {"name": "mlp"}, "trainer": {"name": "grlu"}}
    assert make_experiment(resolve(config)).trainer.looped

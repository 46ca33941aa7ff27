"""Binarisation of grey pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import input_pipeline
from grlu.errors import UserError
from input_pipeline.binarize import binarize_dynamic, binarize_static


def load(**options):
    return input_pipeline.load("digits", normalize="unit", **options)


def test_static_samples_are_binary_with_grey_as_probability():
    images = np.broadcast_to(np.arange(17, dtype=np.uint8)[None], (20_000, 17))
    drawn = binarize_static({"image": images}, 16.0, 0)["image"]
    assert set(np.unique(drawn)) == {0, 16}
    assert (drawn[:, 0] == 0).all()
    assert (drawn[:, 16] == 16).all()
    np.testing.assert_allclose((drawn > 0).mean(0), np.arange(17) / 16, atol=0.015)


def test_dynamic_samples_differ_by_key_with_grey_as_probability():
    batch = {"image": jnp.broadcast_to(jnp.linspace(0, 1, 11)[None], (20_000, 11))}
    one, other = (binarize_dynamic(batch, jax.random.key(i))["image"] for i in range(2))
    assert set(np.unique(one)) == {0.0, 1.0}
    assert (one != other).any()
    np.testing.assert_allclose(one.mean(0), np.linspace(0, 1, 11), atol=0.015)


def test_test_images_are_the_same_for_all_runs():
    static, dynamic, grey = load(binarize="static"), load(binarize="dynamic"), load()
    smaller = load(binarize="dynamic", subset=100)
    for split in ("validation", "test"):
        images = getattr(static, split)["image"]
        assert set(np.unique(images)) == {0, 16}
        np.testing.assert_array_equal(images, getattr(dynamic, split)["image"])
        np.testing.assert_array_equal(images, getattr(smaller, split)["image"])
    np.testing.assert_array_equal(dynamic.train["image"], grey.train["image"])
    assert set(np.unique(static.train["image"])) == {0, 16}
    assert dynamic.augment is not None
    assert static.augment is None
    assert set(np.unique(dynamic.preprocess(dynamic.test)["image"])) == {0.0, 1.0}


def test_pixels_must_be_probabilities():
    with pytest.raises(UserError, match=r"binarize=static needs pixels .*normalize=unit"):
        input_pipeline.load("digits", binarize="static")
    with pytest.raises(UserError, match="must be dynamic, static or null"):
        load(binarize="sometimes")
